"""A small English grammar: who did what to whom, where and when, and the ways to say it.

An `Event` is the meaning of a clause. Functions named after constructions (`active`, `passive`,
`cleft`, ...) put it into words; functions that take and return an event change its meaning in one
known way (`swapped`, `with_other_agent`, ...), or not at all (`reworded`). Tasks derive their
labels from which of these they applied. All randomness comes from the `random.Random` passed in.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from moe_runner.tasks.mini import lexicon
from moe_runner.tasks.mini.lexicon import Noun, Scene, Verb

_ALL_SCENES = lexicon.SCENES + lexicon.OTHER_SCENES
_ALL_NOUNS = (
    tuple(noun for scene in _ALL_SCENES for noun in scene.people + scene.things)
    + lexicon.NAMES
    + lexicon.GENDERED
)
_NOUN_BY_WORD = {noun.word: noun for noun in _ALL_NOUNS}
_VERB_BY_BASE = {
    verb.base: verb for verb in lexicon.VERBS + lexicon.SOCIAL_VERBS + lexicon.INTRANSITIVE_VERBS
}
NOUN_SYNONYMS: dict[str, Noun] = {}
for _word, _synonym in lexicon.NOUN_SYNONYM_PAIRS:
    NOUN_SYNONYMS[_word] = replace(
        _NOUN_BY_WORD[_word], word=_synonym, plural=lexicon.pluralize(_synonym)
    )
    NOUN_SYNONYMS[_synonym] = _NOUN_BY_WORD[_word]
VERB_SYNONYMS: dict[str, Verb] = {}
for _word, _synonym in lexicon.SYNONYM_PAIRS:
    VERB_SYNONYMS[_word] = _VERB_BY_BASE[_synonym]
    VERB_SYNONYMS[_synonym] = _VERB_BY_BASE[_word]
VERB_OPPOSITES: dict[str, tuple[Verb, ...]] = {}
for _word, _opposite in lexicon.OPPOSITE_PAIRS:
    for _one, _other in ((_word, _opposite), (_opposite, _word)):
        VERB_OPPOSITES[_one] = (*VERB_OPPOSITES.get(_one, ()), _VERB_BY_BASE[_other])

ACCUSATIVE = {"he": "him", "she": "her", "it": "it", "they": "them"}
REFLEXIVE = {"he": "himself", "she": "herself", "it": "itself", "they": "themselves"}


@dataclass(frozen=True)
class NounPhrase:
    """A noun with its determiner and adjective; two or more if `plural`."""

    noun: Noun
    determiner: str = "the"
    adjective: str = ""
    plural: bool = False

    def __str__(self) -> str:
        if self.noun.is_name:
            return self.noun.word
        noun = self.noun.plural if self.plural else self.noun.word
        words = [word for word in (self.adjective, noun) if word]
        determiner = self.determiner
        if determiner == "a" and words[0][0] in "aeiou":
            determiner = "an"
        return " ".join([determiner, *words] if determiner else words)

    @property
    def pronoun(self) -> str:
        """The pronoun that stands for the phrase; "they" for a person of unknown gender."""
        return "they" if self.plural else self.noun.pronoun or "they"


@dataclass(frozen=True)
class Event:
    """The meaning of a clause.

    Attributes:
        agent: who acts.
        verb: what is done.
        patient: to whom or what; None for an intransitive verb.
        place: a phrase as "in the kitchen", or "".
        time: a phrase as "on Monday", or ""; it fits the tense.
        tense: "past", "present" (a habit), "future", "ability", "progressive", "perfect".
        negated: true if the event did not happen.
        scene: where its words come from.
    """

    agent: NounPhrase
    verb: Verb
    patient: NounPhrase | None
    scene: Scene
    place: str = ""
    time: str = ""
    tense: str = "past"
    negated: bool = False

    @property
    def is_social(self) -> bool:
        """Whether agent and patient are both people."""
        return self.patient is not None and self.patient.noun.kind == "person"


# ---------------------------------------------------------------------------------------------
# Choosing an event


def sample_event(
    rng: Random,
    scenes: Sequence[Scene] = lexicon.SCENES,
    *,
    social: bool | None = None,
    intransitive: float = 0.0,
    tenses: Sequence[str] = ("past",),
    place: float = 0.6,
    time: float = 0.4,
    adjective: float = 0.15,
    plural: float = 0.15,
) -> Event:
    """Choose who does what to whom, where and when.

    Args:
        rng: source of randomness.
        scenes: where the words may come from; one scene is chosen.
        social: whether the patient is a person; None: one time in three.
        intransitive: probability that there is no patient.
        tenses: tenses to choose from.
        place: probability of a place.
        time: probability of a time.
        adjective: probability of an adjective, for each noun phrase.
        plural: probability of a plural, for each noun phrase.
    """
    scene = rng.choice(scenes)
    tense = rng.choice(tenses)
    agent = sample_person(rng, scene, adjective=adjective, plural=plural)
    patient: NounPhrase | None
    if rng.random() < intransitive:
        verb, patient = rng.choice(lexicon.INTRANSITIVE_VERBS), None
    elif rng.random() < 1 / 3 if social is None else social:
        verb = rng.choice(verbs_for("person", tense))
        patient = sample_person(rng, scene, adjective=adjective, plural=plural, other_than=agent)
    else:
        noun = rng.choice(scene.things)
        verb = rng.choice(verbs_for(noun.kind, tense))
        patient = describe(rng, noun, adjective=adjective, plural=plural)
    return Event(
        agent=agent,
        verb=verb,
        patient=patient,
        scene=scene,
        place=rng.choice(scene.places) if rng.random() < place else "",
        time=rng.choice(times(tense)) if rng.random() < time else "",
        tense=tense,
    )


def sample_person(
    rng: Random,
    scene: Scene,
    *,
    adjective: float = 0.0,
    plural: float = 0.0,
    other_than: NounPhrase | None = None,
) -> NounPhrase:
    """Choose a person of a scene, now and then a name or a person of known gender."""
    while True:
        group = rng.choice((scene.people, scene.people, scene.people, lexicon.GENDERED))
        group = lexicon.NAMES if rng.random() < 0.15 else group
        noun = rng.choice(group)
        if other_than is None or noun != other_than.noun:
            return describe(rng, noun, adjective=adjective, plural=plural)


def describe(rng: Random, noun: Noun, *, adjective: float = 0.0, plural: float = 0.0) -> NounPhrase:
    """Make a definite noun phrase, with an adjective and in the plural by chance."""
    if noun.is_name:
        return NounPhrase(noun)
    chosen = rng.choice(adjectives_for(noun.kind)) if rng.random() < adjective else ""
    return NounPhrase(noun, adjective=chosen, plural=rng.random() < plural)


def noun_of(word: str) -> Noun:
    """Return the noun with this singular form."""
    return _NOUN_BY_WORD[word]


@cache
def verbs_for(kind: str, tense: str = "past") -> tuple[Verb, ...]:
    """Return the verbs whose object can be of this kind, in this tense."""
    verbs = lexicon.SOCIAL_VERBS if kind == "person" else lexicon.VERBS
    banned = lexicon.NOT_PROGRESSIVE if tense == "progressive" else ()
    return tuple(verb for verb in verbs if kind in verb.takes and verb.base not in banned)


def adjectives_for(kind: str) -> tuple[str, ...]:
    """Return the adjectives that fit a kind of noun; neighbours are opposites."""
    if kind == "person":
        return lexicon.PERSON_ADJECTIVES
    if kind == "animal":
        return lexicon.ANIMAL_ADJECTIVES
    return lexicon.FOOD_ADJECTIVES if kind in lexicon.FOOD_KINDS else lexicon.THING_ADJECTIVES


def times(tense: str) -> tuple[str, ...]:
    """Return the time phrases that fit a tense."""
    if tense == "past":
        return lexicon.PAST_TIMES
    if tense == "future":
        return lexicon.FUTURE_TIMES
    return lexicon.HABITUAL_TIMES if tense == "present" else ("",)


# ---------------------------------------------------------------------------------------------
# Putting an event into words (lower case, no full stop; see `sentence`)


def sentence(words: str, end: str = ".") -> str:
    """Write the first letter large and add the punctuation mark."""
    return words[0].upper() + words[1:] + end


def joined(*parts: object) -> str:
    """Join the non-empty parts with spaces."""
    return " ".join(text for part in parts if (text := str(part)))


def auxiliary(event: Event, *, plural: bool, passive: bool = False) -> tuple[str, str]:
    """Return the first auxiliary ("" if none is needed) and the rest of the verb group.

    Args:
        event: its verb, tense and negation are read.
        plural: number of the subject.
        passive: whether the subject is the patient.
    """
    verb, tense = event.verb, event.tense
    if tense in ("future", "ability"):
        modal = "will" if tense == "future" else "can"
        return modal, joined("be", verb.participle) if passive else verb.base
    if tense == "perfect":
        have = "have" if plural else "has"
        return have, joined("been", verb.participle) if passive else verb.participle
    if tense == "progressive":
        be = "are" if plural else "is"
        return be, joined("being", verb.participle) if passive else verb.ing
    if passive:
        be = ("were" if plural else "was") if tense == "past" else ("are" if plural else "is")
        return be, verb.participle
    if event.negated:
        do = "did" if tense == "past" else ("do" if plural else "does")
        return do, verb.base
    if tense == "past":
        return "", verb.past
    return "", verb.base if plural else verb.third


def verb_group(event: Event, *, plural: bool, passive: bool = False) -> str:
    """Return the finite verb with its auxiliaries, agreeing with a subject."""
    first, rest = auxiliary(event, plural=plural, passive=passive)
    return joined(first, "not" if event.negated else "", rest)


def active(event: Event, *, front: str = "") -> str:
    """Say it in the active voice; `front` ("place" or "time") moves that phrase to the start."""
    body = joined(
        event.agent, verb_group(event, plural=event.agent.plural), event.patient or "",
        *_adjuncts(event, front),
    )  # fmt: skip
    return _fronted(event, front, body)


def passive(event: Event, *, front: str = "", by: bool = True) -> str:
    """Say it in the passive voice, with or without the agent."""
    assert event.patient is not None
    body = joined(
        event.patient,
        verb_group(event, plural=event.patient.plural, passive=True),
        joined("by", event.agent) if by else "",
        *_adjuncts(event, front),
    )
    return _fronted(event, front, body)


def cleft(event: Event, *, focus: str = "agent") -> str:
    """Say "it was ... who/that ..." with the agent, patient, place or time in focus."""
    be = "is" if event.tense in ("present", "progressive") else "was"
    group = verb_group(event, plural=event.agent.plural)
    if focus == "agent":
        rest = joined("who", group, event.patient or "", *_adjuncts(event))
        return joined("it", be, event.agent, rest)
    if focus == "patient":
        return joined(
            "it", be, event.patient, "that", event.agent, group, *_adjuncts(event)
        )  # fmt: skip
    rest = joined("that", event.agent, group, event.patient or "", *_adjuncts(event, focus))
    return joined("it", be, getattr(event, focus), rest)


def yes_no_question(event: Event) -> str:
    """Ask whether it happened."""
    first, rest = _inverted(event)
    return joined(first, event.agent, rest, event.patient or "", *_adjuncts(event))


def wh_question(event: Event, asked: str) -> str:
    """Ask for one part of an event: "agent", "patient", "place" or "time"."""
    if asked == "agent":
        group = verb_group(event, plural=False)
        return joined("who", group, event.patient or "", *_adjuncts(event))
    first, rest = _inverted(event)
    if asked == "patient":
        word = "whom" if event.is_social else "what"
        return joined(word, first, event.agent, rest, *_adjuncts(event))
    word = {"place": "where", "time": "when"}[asked]
    return joined(word, first, event.agent, rest, event.patient or "", *_adjuncts(event, asked))


def subject_relative(event: Event) -> str:
    """Return "the chef who cooked the soup"."""
    group = verb_group(event, plural=event.agent.plural)
    return joined(event.agent, "who", group, event.patient or "", *_adjuncts(event))


def object_relative(event: Event) -> str:
    """Return "the soup that the chef cooked"."""
    group = verb_group(event, plural=event.agent.plural)
    return joined(event.patient, "that", event.agent, group, *_adjuncts(event))


def with_matrix_verb(event: Event, matrix: str) -> str:
    """Return "the chef failed to cook the soup", for `matrix` "failed to"."""
    return joined(event.agent, matrix, event.verb.base, event.patient or "", *_adjuncts(event))


def by_nobody(event: Event) -> str:
    """Return "nobody cooked the soup": the denial of the event whoever its agent may be."""
    group = verb_group(event, plural=False)
    return joined("nobody", group, event.patient or "", *_adjuncts(event))


def indefinite(event: Event) -> Event:
    """Introduce people and things for the first time: "a chef", "some chefs"; no names."""
    agent = _introduced(event.agent)
    return replace(event, agent=agent, patient=event.patient and _introduced(event.patient))


def _introduced(phrase: NounPhrase) -> NounPhrase:
    if phrase.noun.is_name:
        return NounPhrase(noun_of("man" if phrase.noun.pronoun == "he" else "woman"), "a")
    if phrase.determiner != "the":
        return phrase
    return replace(phrase, determiner="some" if phrase.plural else "a")


def _inverted(event: Event) -> tuple[str, str]:
    first, rest = auxiliary(event, plural=event.agent.plural)
    if not first:
        first, rest = auxiliary(replace(event, negated=True), plural=event.agent.plural)
    return first, joined("not", rest) if event.negated else rest


def _adjuncts(event: Event, without: str = "") -> tuple[str, str]:
    return (
        "" if without == "place" else event.place,
        "" if without == "time" else event.time,
    )


def _fronted(event: Event, front: str, body: str) -> str:
    phrase = getattr(event, front) if front else ""
    return f"{phrase}, {body}" if phrase else body


# ---------------------------------------------------------------------------------------------
# Changing the words but not the meaning


def reworded(event: Event, rng: Random, *, share: float = 0.7) -> Event:
    """Exchange nouns and verb for synonyms, each with probability `share` where there is one."""
    verb = event.verb
    if verb.base in VERB_SYNONYMS and rng.random() < share:
        synonym = VERB_SYNONYMS[verb.base]
        fits = event.patient is None or event.patient.noun.kind in synonym.takes
        odd = event.tense == "progressive" and synonym.base in lexicon.NOT_PROGRESSIVE
        if fits and not odd:
            verb = synonym
    agent = _synonymous(event.agent, rng, share)
    patient = event.patient and _synonymous(event.patient, rng, share)
    return replace(event, agent=agent, verb=verb, patient=patient)


def _synonymous(phrase: NounPhrase, rng: Random, share: float) -> NounPhrase:
    if phrase.noun.word in NOUN_SYNONYMS and rng.random() < share:
        return replace(phrase, noun=NOUN_SYNONYMS[phrase.noun.word])
    return phrase


def restated(event: Event, rng: Random) -> str:
    """Say it in the passive or with a phrase at the front, in words of the same meaning."""
    event = reworded(event, rng)
    fronts = [front for front in ("place", "time") if getattr(event, front)]
    front = rng.choice(fronts) if fronts and rng.random() < 0.4 else ""
    if event.patient is not None and event.tense != "perfect" and rng.random() < 0.6:
        return passive(event, front=front)
    return active(event, front=front)


# ---------------------------------------------------------------------------------------------
# Changing the meaning in one known way; each returns None where the event offers no such change


def with_other_agent(event: Event, rng: Random) -> Event | None:
    """Let another person of the scene do it."""
    while True:
        agent = sample_person(rng, event.scene, other_than=event.agent)
        taken = (event.agent, event.patient)
        if not any(_may_be_same(agent, phrase) for phrase in taken if phrase):
            return replace(event, agent=agent)


def with_other_patient(event: Event, rng: Random) -> Event | None:
    """Let it happen to somebody or something else."""
    if event.patient is None:
        return None
    old = event.patient
    if event.is_social:
        while True:
            patient = sample_person(rng, event.scene, other_than=old)
            if not any(_may_be_same(patient, phrase) for phrase in (event.agent, old)):
                return replace(event, patient=patient)
    fitting = [n for n in event.scene.things if n.kind in event.verb.takes and n != old.noun]
    fitting = [n for n in fitting if NOUN_SYNONYMS.get(n.word) != old.noun]
    if not fitting:
        return None
    return replace(event, patient=replace(old, noun=rng.choice(fitting), adjective=""))


def with_other_verb(event: Event, rng: Random) -> Event | None:
    """Let something else be done, not merely named otherwise."""
    if event.patient is None:
        verbs: tuple[Verb, ...] = lexicon.INTRANSITIVE_VERBS
    else:
        verbs = verbs_for(event.patient.noun.kind, event.tense)
    verbs = tuple(verb for verb in verbs if not is_same_verb(verb, event.verb))
    return replace(event, verb=rng.choice(verbs)) if verbs else None


def with_opposite_verb(event: Event, rng: Random) -> Event | None:
    """Let the opposite be done."""
    patient = event.patient
    opposites = [
        verb
        for verb in VERB_OPPOSITES.get(event.verb.base, ())
        if (patient is None or patient.noun.kind in verb.takes)
        and not (event.tense == "progressive" and verb.base in lexicon.NOT_PROGRESSIVE)
    ]
    return replace(event, verb=rng.choice(opposites)) if opposites else None


def with_other_place(event: Event, rng: Random) -> Event | None:
    """Move it to another place of the scene."""
    if not event.place:
        return None
    return replace(event, place=rng.choice([p for p in event.scene.places if p != event.place]))


def with_other_time(event: Event, rng: Random) -> Event | None:
    """Move it to another time."""
    if not event.time:
        return None
    return replace(event, time=rng.choice([t for t in times(event.tense) if t != event.time]))


def with_opposite_adjective(event: Event, rng: Random) -> Event | None:
    """Give the patient, or else the agent, the opposite property."""
    patient, agent = event.patient, event.agent
    if patient is not None and patient.adjective:
        return replace(event, patient=_contrary(patient))
    return replace(event, agent=_contrary(agent)) if agent.adjective else None


def _contrary(phrase: NounPhrase) -> NounPhrase:
    words = adjectives_for(phrase.noun.kind)
    return replace(phrase, adjective=words[words.index(phrase.adjective) ^ 1])


def swapped(event: Event, rng: Random) -> Event | None:
    """Exchange agent and patient, where both are people."""
    if not event.is_social or event.patient is None:
        return None
    return replace(event, agent=event.patient, patient=event.agent)


def negated(event: Event, rng: Random) -> Event | None:
    """Say that it did not happen, or that it did if it did not."""
    return replace(event, negated=not event.negated)


def with_other_tense(event: Event, rng: Random) -> Event | None:
    """Tell what is past as still to come, and the other way round."""
    tense = "past" if event.tense == "future" else "future"
    return replace(event, tense=tense, time=rng.choice(times(tense)) if event.time else "")


Change = Callable[[Event, Random], Event | None]


def changed(event: Event, rng: Random, changes: Sequence[Change]) -> Event | None:
    """Apply one change, chosen among those that are possible; None if there is none."""
    for change in rng.sample(changes, len(changes)):
        if (result := change(event, rng)) is not None:
            return result
    return None


def without(event: Event, part: str) -> Event:
    """Leave out the place or the time."""
    return replace(event, place="") if part == "place" else replace(event, time="")


def without_details(event: Event) -> Event:
    """Leave out place, time and adjectives."""
    return replace(
        event,
        place="",
        time="",
        agent=replace(event.agent, adjective=""),
        patient=event.patient and replace(event.patient, adjective=""),
    )


def generalized(event: Event, rng: Random) -> Event:
    """Name the patient or the agent by a more general word.

    The result follows from the event, as "the chef cut a vegetable" from "the chef cut the potato".
    """
    patient, agent = event.patient, event.agent
    options = []
    if patient is not None and patient.noun.kind in lexicon.HYPERNYMS:
        options.append(replace(event, patient=_general(patient)))
    options.append(replace(event, agent=_general(agent)))
    return rng.choice(options)


def _general(phrase: NounPhrase) -> NounPhrase:
    noun = lexicon.HYPERNYMS[phrase.noun.kind]
    return NounPhrase(noun, "some" if phrase.plural else "a", plural=phrase.plural)


def is_same_verb(one: Verb, other: Verb) -> bool:
    """Whether two verbs are equal or synonyms."""
    return one == other or VERB_SYNONYMS.get(one.base) == other


def _may_be_same(one: NounPhrase, other: NounPhrase) -> bool:
    return one.noun == other.noun or NOUN_SYNONYMS.get(one.noun.word) == other.noun


# Changes after which both cannot be true of one event.
EXCLUDING_CHANGES = (
    with_opposite_verb,
    with_other_agent,
    with_other_place,
    with_other_time,
    with_opposite_adjective,
    swapped,
)


# ---------------------------------------------------------------------------------------------
# Reviews


@dataclass(frozen=True)
class ReviewDomain:
    """What is reviewed, and in which words."""

    nouns: Sequence[str]
    aspects: Sequence[str]
    positive: Sequence[str]
    negative: Sequence[str]


MOVIES = ReviewDomain(
    lexicon.MOVIE_NOUNS,
    lexicon.MOVIE_ASPECTS,
    lexicon.POSITIVE_ADJECTIVES,
    lexicon.NEGATIVE_ADJECTIVES,
)
MEALS = ReviewDomain(
    lexicon.MEAL_NOUNS,
    lexicon.MEAL_ASPECTS,
    lexicon.MEAL_POSITIVE_ADJECTIVES,
    lexicon.MEAL_NEGATIVE_ADJECTIVES,
)
PHONES = ReviewDomain(
    lexicon.PHONE_NOUNS,
    lexicon.PHONE_ASPECTS,
    lexicon.PHONE_POSITIVE_ADJECTIVES,
    lexicon.PHONE_NEGATIVE_ADJECTIVES,
)


def opinion(
    rng: Random, domain: ReviewDomain, noun: str, *, positive: bool, denial: float = 0.25
) -> str:
    """Return a clause of praise or blame.

    Args:
        rng: source of randomness.
        domain: what is reviewed.
        noun: one of the domain's nouns.
        positive: what the clause as a whole says.
        denial: probability that it says so by denying the opposite, as in "not dull".
    """
    aspect = rng.choice(domain.aspects)
    subject = rng.choice((f"the {aspect}", f"the {aspect}", f"this {noun}", f"the {noun}"))
    if rng.random() < denial:
        word = rng.choice(domain.negative if positive else domain.positive)
        return rng.choice(
            (
                f"{subject} is {rng.choice(lexicon.REVERSERS)} {word}",
                f"{subject} is {rng.choice(lexicon.REVERSERS)} {word}",
                f"there is nothing {word} about the {aspect}",
                f"I did not find the {aspect} {word}",
                f"I do not think that {subject} is {word}",
                f"it would be wrong to call this {noun} {word}",
                f"{subject} could hardly be less {word}",
                f"nobody will call this {noun} {word}",
            )
        )
    adjective = rng.choice(domain.positive if positive else domain.negative)
    verbs = lexicon.POSITIVE_VERBS if positive else lexicon.NEGATIVE_VERBS
    verb = rng.choice(verbs if domain is MOVIES else verbs[:2])
    comparative = lexicon.IRREGULAR_COMPARATIVES.get(adjective, f"more {adjective}")
    attitude = rng.choice(lexicon.LIKING if positive else lexicon.DISLIKING)
    return rng.choice(
        (
            f"{subject} is {adjective}",
            f"{subject} could hardly be {comparative}",
            f"{subject} is {rng.choice(lexicon.INTENSIFIERS)} {adjective}",
            f"this is {with_article(adjective)} {noun}",
            f"the {noun} has {with_article(adjective)} {aspect}"
            if aspect not in lexicon.MASS_ASPECTS
            else f"the {aspect} of the {noun} is {adjective}",
            f"I {attitude} the {aspect}",
            f"{subject} {verb.third} {rng.choice(('the visitors', 'me', 'everybody'))}",
        )
    )


def review(rng: Random, domain: ReviewDomain, *, positive: bool, hard: float = 0.3) -> str:
    """Return a review of one or two clauses; a share `hard` of them has words of both kinds.

    In a mixed review the main clause, or the clause after "but", decides.
    """
    noun = rng.choice(domain.nouns)
    main = opinion(rng, domain, noun, positive=positive)
    if rng.random() < hard:
        aside = opinion(rng, domain, noun, positive=not positive, denial=0.1)
        return rng.choice((f"although {aside}, {main}", f"{aside}, but {main}"))
    if rng.random() < 0.5:
        return main
    more = main
    while more.split()[:2] == main.split()[:2]:
        more = opinion(rng, domain, noun, positive=positive)
    return f"{main}, and {more}"


def with_article(word: str) -> str:
    """Return "a" or "an" and the word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


# ---------------------------------------------------------------------------------------------
# Questions as people ask them on the web


@dataclass(frozen=True)
class Query:
    """What somebody wants to know: a frame ("how", "cost", ...), an activity, a qualifier."""

    frame: str
    activity: str
    objects: tuple[str, ...]
    qualifier: str = ""


# Verb phrases of the same meaning; {0} and {1} are the objects.
ACTIVITIES = {
    "learn": ("learn {0}", "study {0}"),
    "teach": ("teach {0}", "give lessons in {0}"),
    "travel": ("travel from {0} to {1}", "get from {0} to {1}"),
    "move": ("move from {0} to {1}",),
    "buy": ("buy {0}", "purchase {0}"),
    "repair": ("repair {0}", "fix {0}"),
    "sell": ("sell {0}",),
    "become": ("become {0}", "find work as {0}"),
    "hire": ("hire {0}", "employ {0}"),
}


def sample_query(rng: Random, *, qualifier: float = 0.35) -> Query:
    """Choose a question."""
    activity = rng.choice(list(ACTIVITIES))
    return Query(
        rng.choice(frames_for(activity)),
        activity,
        sample_objects(rng, activity),
        rng.choice(lexicon.QUALIFIERS) if rng.random() < qualifier else "",
    )


def frames_for(activity: str) -> list[str]:
    """Return the questions one can ask about an activity."""
    journey = activity in ("travel", "move")
    return [frame for frame in lexicon.QUESTION_FRAMES if not (journey and frame == "where")]


def sample_objects(rng: Random, activity: str) -> tuple[str, ...]:
    """Choose what an activity is about."""
    if activity in ("learn", "teach"):
        return (rng.choice(lexicon.TOPICS),)
    if activity in ("travel", "move"):
        return tuple(rng.sample(lexicon.CITIES, 2))
    scene = rng.choice(lexicon.SCENES)
    if activity in ("become", "hire"):
        people = [noun for noun in scene.people if noun.word not in lexicon.NOT_JOBS]
        return (with_article(rng.choice(people).word),)
    kinds = ("vehicle", "machine", "instrument") if activity == "repair" else _SOLD_KINDS
    things = [noun for scene in lexicon.SCENES for noun in scene.things if noun.kind in kinds]
    return (with_article(rng.choice(things).word),)


# Other things to do with the same objects.
_RELATED_ACTIVITIES = {
    "learn": "teach",
    "teach": "learn",
    "travel": "move",
    "move": "travel",
    "buy": "sell",
    "repair": "sell",
    "sell": "buy",
    "become": "hire",
    "hire": "become",
}
_SOLD_KINDS = ("vehicle", "machine", "instrument", "animal", "garment", "picture")


def asked(query: Query, rng: Random) -> str:
    """Ask it in one of the ways there are."""
    verb_phrase = rng.choice(ACTIVITIES[query.activity]).format(*query.objects)
    frame = rng.choice(lexicon.QUESTION_FRAMES[query.frame])
    return joined(frame.format(verb_phrase), query.qualifier)


def other_query(query: Query, rng: Random) -> Query:
    """Change one or two parts of a question, so that it asks for something else."""
    kind = rng.random()
    if kind < 0.3:
        frames = [frame for frame in frames_for(query.activity) if frame != query.frame]
        return replace(query, frame=rng.choice(frames))
    if kind < 0.5:
        others = [text for text in ("", *lexicon.QUALIFIERS) if text != query.qualifier]
        return replace(query, qualifier="" if query.qualifier else rng.choice(others))
    if kind < 0.6 and len(query.objects) == 2:
        return replace(query, objects=query.objects[::-1])
    if kind < 0.7:
        return replace(query, activity=_RELATED_ACTIVITIES[query.activity])
    other = query
    while other.objects == query.objects:
        other = (
            replace(query, objects=sample_objects(rng, query.activity))
            if kind < 0.85
            else sample_query(rng)
        )
    return other


def answer(query: Query, rng: Random) -> str:
    """Answer a question in general terms."""
    verb_phrase = rng.choice(ACTIVITIES[query.activity]).format(*query.objects)
    reply = {
        "how": f"you can {verb_phrase} with a good plan",
        "why": f"people {verb_phrase} because it is useful",
        "where": f"you can {verb_phrase} in a big city",
        "cost": f"it costs little money to {verb_phrase}",
        "time": f"it takes a few weeks to {verb_phrase}",
    }
    return reply[query.frame]


# ---------------------------------------------------------------------------------------------
# Dividing sentences between training and evaluation


def is_held_out(words: str) -> bool:
    """Whether a sentence is kept for validation and out-of-domain sets: one in four.

    It depends on the words alone, so train sets and pretraining text never meet the held-out sets,
    whatever their seeds. Capital letters and the final mark do not matter.
    """
    return zlib.crc32(words.lower().rstrip(".?!").encode()) % 4 == 0
