"""Grammatical phenomena for `cola`: each is a sentence with and without one violation.

A phenomenon takes the source of randomness and whether the sentence should be acceptable, and
returns the sentence. `PHENOMENA` are in domain, `OTHER_PHENOMENA` out of domain.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from moe_runner.tasks.mini import grammar, lexicon
from moe_runner.tasks.mini.grammar import (
    ACCUSATIVE,
    REFLEXIVE,
    Event,
    NounPhrase,
    active,
    auxiliary,
    describe,
    joined,
    passive,
    sample_event,
    sample_person,
    sentence,
    verb_group,
)

Phenomenon = Callable[[Random, bool], str]

_TENSES = ("past", "past", "present", "future", "ability", "progressive", "perfect")
_PREDICATES = ("is new", "is expensive", "is cheap", "was dirty", "was heavy", "was old")


def _event(rng: Random, **wishes: object) -> Event:
    wishes = {"tenses": _TENSES, "place": 0.4, "time": 0.2, "adjective": 0.1} | wishes
    return sample_event(rng, **wishes)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------
# In domain


def _agreement(rng: Random, good: bool) -> str:
    """The chefs cook / *cooks the soup."""
    event = _event(rng, tenses=("present", "progressive", "perfect"), plural=0.4, intransitive=0.2)
    is_passive = event.patient is not None and event.tense != "perfect" and rng.random() < 0.3
    subject, rest = event.agent, joined(event.patient or "", event.place, event.time)
    if is_passive:
        assert event.patient is not None
        subject, rest = event.patient, joined("by", event.agent, event.place, event.time)
    group = verb_group(event, plural=subject.plural == good, passive=is_passive)
    return sentence(joined(subject, group, rest))


def _verb_form(rng: Random, good: bool) -> str:
    """The chef has cooked / *has cook the soup."""
    event = _event(rng, tenses=("future", "ability", "progressive", "perfect"), intransitive=0.2)
    event = replace(event, negated=rng.random() < 0.2)
    first, form = auxiliary(event, plural=event.agent.plural)
    if not good:
        verb = event.verb
        forms = (verb.base, verb.third, verb.past, verb.participle, verb.ing)
        # "is cooked" is a passive, and "has cooked" may look like the past
        wrong = [f for f in forms if f not in (form, verb.participle)]
        form = rng.choice(wrong)
    negation = "not" if event.negated else ""
    rest = joined(event.patient or "", event.place, event.time)
    return sentence(joined(event.agent, first, negation, form, rest))


def _question(rng: Random, good: bool) -> str:
    """Did the chef cook / *cooked the soup?"""
    event = _event(rng, intransitive=0.2, tenses=("past", "present"), time=0.0)
    asked = rng.choice(("", "where", "when"))
    event = replace(event, place="" if asked == "where" else event.place)
    rest = joined(event.patient or "", event.place)
    do, base = auxiliary(replace(event, negated=True), plural=event.agent.plural)
    if good:
        return sentence(joined(asked, do, event.agent, base, rest), "?")
    finite = verb_group(event, plural=event.agent.plural)
    if asked and rng.random() < 0.5:
        return sentence(joined(asked, event.agent, finite, rest), "?")
    form = event.verb.past if finite == event.verb.base or event.tense == "past" else finite
    form = event.verb.ing if form == base else form
    return sentence(joined(asked, do, event.agent, form, rest), "?")


def _word_order(rng: Random, good: bool) -> str:
    """The chef cooked the soup / *The chef the soup cooked."""
    event = _event(rng, tenses=("past", "future", "perfect"))
    if good:
        return sentence(active(event, front=rng.choice(("", "place", "time"))))
    group, place = verb_group(event, plural=event.agent.plural), joined(event.place, event.time)
    agent, patient = str(event.agent), str(event.patient)
    orders = [(agent, patient, group, place), (group, patient, agent, place)]
    if not event.agent.noun.is_name:
        orders.append((" ".join(reversed(agent.split())), group, patient, place))
    assert event.patient is not None
    if not event.patient.noun.is_name:
        orders.append((agent, group, " ".join(reversed(patient.split())), place))
    return sentence(joined(*rng.choice(orders)))


def _object(rng: Random, good: bool) -> str:
    """The boy fixed the car / *The boy fixed; the boy slept / *The boy slept the car."""
    if rng.random() < 0.5:
        event = _event(rng, place=0.8)
        while event.verb.base not in lexicon.NEVER_WITHOUT_OBJECT:
            event = _event(rng, place=0.8)
        return sentence(active(event if good else replace(event, patient=None)))
    event = _event(rng, intransitive=1.0)
    while event.verb.base in ("sing", "dance", "run", "swim", "work", "sit"):
        event = _event(rng, intransitive=1.0)
    if good:
        return sentence(active(event))
    return sentence(active(replace(event, patient=describe(rng, rng.choice(event.scene.things)))))


def _determiner(rng: Random, good: bool) -> str:
    """The clerk bought a / *the a clock; *The clerk bought clock."""
    event = _event(rng, social=False, plural=0.0)
    while event.patient is None or event.patient.noun.kind in lexicon.FOOD_KINDS:
        event = _event(rng, social=False, plural=0.0)
    patient = replace(event.patient, determiner=rng.choice(("the", "a", "this", "every")))
    if not good:
        patient = replace(patient, determiner=rng.choice(("", "", "the a", "this the", "these")))
    return sentence(active(replace(event, patient=patient)))


def _pronoun_case(rng: Random, good: bool) -> str:
    """She helped him / *Her helped he."""
    event = _event(rng, social=True)
    one, two = rng.sample(("he", "she", "they"), 2)
    is_subject = rng.random() < 0.5
    pronoun = one if is_subject == good else ACCUSATIVE[one]
    if is_subject:
        group = verb_group(event, plural=one == "they")
        obj = ACCUSATIVE[two] if rng.random() < 0.4 else event.patient
        return sentence(joined(pronoun, group, obj, event.place, event.time))
    group = verb_group(event, plural=event.agent.plural)
    return sentence(joined(event.agent, group, pronoun, event.place, event.time))


def _reflexive(rng: Random, good: bool) -> str:
    """The girl blamed herself / *himself; *Herself blamed the girl."""
    event = _event(rng, social=True, plural=0.25)
    noun = rng.choice(lexicon.GENDERED + lexicon.NAMES)
    agent = describe(rng, noun, plural=0.25)
    while event.verb.base in ("meet", "follow", "hug", "embrace", "phone", "call", "visit"):
        event = _event(rng, social=True)
    group = verb_group(event, plural=agent.plural)
    right = REFLEXIVE[agent.pronoun]
    if good:
        return sentence(joined(agent, group, right, event.place, event.time))
    if rng.random() < 0.25:
        group = verb_group(event, plural=agent.plural)
        return sentence(joined(right, group, agent, event.place, event.time))
    wrong = rng.choice([word for word in REFLEXIVE.values() if word != right])
    return sentence(joined(agent, group, wrong, event.place, event.time))


def _polarity_item(rng: Random, good: bool) -> str:
    """No chef has ever cooked the soup / *The chef has ever cooked the soup."""
    event = _event(rng, tenses=("perfect",), adjective=0.0, plural=0.0, time=0.0)
    negative = rng.random() < 0.7
    noun = event.agent.noun
    agent = "nobody" if noun.is_name else f"no {noun.word}"
    if not good or not negative:
        determiner = rng.choice(("the", "every"))
        agent = str(event.agent if noun.is_name else replace(event.agent, determiner=determiner))
    adverb = "already" if good and not negative else "ever"
    return sentence(joined(agent, "has", adverb, event.verb.participle, event.patient, event.place))


def _inflection(rng: Random, good: bool) -> str:
    """The boy bought / *buyed the car; the children / *childs."""
    if rng.random() < 0.6:
        event = _event(rng, tenses=("past",))
        while not _is_irregular(event):
            event = _event(rng, tenses=("past",))
        if good:
            return sentence(active(event))
        verb = replace(event.verb, past=_regular_past(event.verb.base))
        return sentence(active(replace(event, verb=verb)))
    event = _event(rng, intransitive=0.5)
    noun = grammar.noun_of(rng.choice(("man", "woman", "thief")))
    if not good:
        noun = replace(noun, plural=noun.word + "s")
    return sentence(active(replace(event, agent=NounPhrase(noun, plural=True))))


def _is_irregular(event: Event) -> bool:
    return not event.verb.past.endswith("ed") and event.verb.past != event.verb.base


def _regular_past(base: str) -> str:
    return base + "d" if base.endswith("e") else base + "ed"


def _relative_clause(rng: Random, good: bool) -> str:
    """The car that the clerk sold is new / *The car that the clerk sold it is new."""
    event = _event(rng, social=False, tenses=("past",), plural=0.0, place=0.0, time=0.0)
    if rng.random() < 0.5:
        relative = grammar.object_relative(event)
        resumptive = "" if good else "it"
        return sentence(joined(relative, resumptive, rng.choice(_PREDICATES)))
    while event.agent.noun.is_name:
        event = _event(rng, social=False, tenses=("past",))
    other = _event(rng, social=True, tenses=("past",))
    pronoun = "who" if good else rng.choice(("which", "whom", "who he"))
    relative = grammar.subject_relative(event).replace(" who ", f" {pronoun} ")
    return sentence(joined(relative, other.verb.past, other.patient, other.place))


def _complement(rng: Random, good: bool) -> str:
    """The boy thinks that the chef cooked / *to cook the soup."""
    event = _event(rng, place=0.3, time=0.0)
    person = sample_person(rng, event.scene, other_than=event.agent)
    verb = rng.choice(lexicon.CLAUSE_VERBS)
    said = rng.choice((verb.third, verb.past))
    if good:
        return sentence(joined(person, said, "that", active(event)))
    if rng.random() < 0.5:
        return sentence(joined(person, said, "of that", active(event)))
    infinitive = joined(event.agent, "to", event.verb.base, event.patient, event.place)
    return sentence(joined(person, said, "that", infinitive))


def _passive_voice(rng: Random, good: bool) -> str:
    """The soup was cooked by the chef / *The soup was cooked the chef by."""
    event = _event(rng, tenses=("past", "present", "future"), social=rng.random() < 0.4)
    if good:
        return sentence(passive(event))
    assert event.patient is not None
    group = verb_group(event, plural=event.patient.plural, passive=True)
    by = rng.choice((f"{event.agent} by", f"from {event.agent}"))
    return sentence(joined(event.patient, group, by, event.place))


PHENOMENA: tuple[Phenomenon, ...] = (
    _agreement,
    _agreement,
    _verb_form,
    _verb_form,
    _question,
    _word_order,
    _word_order,
    _object,
    _determiner,
    _pronoun_case,
    _reflexive,
    _polarity_item,
    _inflection,
    _relative_clause,
    _complement,
    _passive_voice,
)


# ---------------------------------------------------------------------------------------------
# Out of domain


def _cleft(rng: Random, good: bool) -> str:
    """It was the chef who cooked the soup / *It was the chef who he cooked the soup."""
    event = _event(rng, tenses=("past",), plural=0.0)
    if good:
        focus = rng.choice(("agent", "patient", "place") if event.place else ("agent", "patient"))
        return sentence(grammar.cleft(event, focus=focus))
    clause = joined(event.verb.past, event.patient, event.place)
    return sentence(
        rng.choice(
            (
                joined("it was", event.agent, "who", event.agent.pronoun, clause),
                joined("it", event.agent, "was who", clause),
                joined("it was", event.agent, clause, "who"),
            )
        )
    )


def _existential(rng: Random, good: bool) -> str:
    """There is a dog in the barn / *There is two dogs in the barn."""
    scene = rng.choice(lexicon.SCENES)
    noun = rng.choice(scene.people + scene.things)
    determiner = rng.choice(("a", "a", "two", "three", "many"))
    plural = determiner != "a"
    adjective = rng.choice(("", rng.choice(grammar.adjectives_for(noun.kind))))
    phrase = NounPhrase(noun, determiner, adjective, plural)
    be = rng.choice(("is", "was")) if plural != good else rng.choice(("are", "were"))
    return sentence(joined("there", be, phrase, rng.choice(scene.places)))


def _two_objects(rng: Random, good: bool) -> str:
    """The chef gave the boy an apple / *The chef gave an apple the boy."""
    event = _event(rng, social=True, plural=0.1)
    noun = rng.choice([thing for thing in event.scene.things if thing.kind != "door"])
    gift = NounPhrase(noun, rng.choice(("a", "the")))
    verb = rng.choice(("gave", "sent", "showed", "offered"))
    objects = joined(event.patient, gift) if good else joined(gift, event.patient)
    if rng.random() < 0.5:  # "donate" and "return" always need the preposition
        verb = rng.choice((verb, "donated", "returned") if good else ("donated", "returned"))
        objects = joined(gift, "to", event.patient) if good else joined(event.patient, gift)
    return sentence(joined(event.agent, verb, objects, event.place))


def _comparison(rng: Random, good: bool) -> str:
    """The chef is taller than the boy / *The chef is more taller than the boy."""
    event = _event(rng, social=True, adjective=0.0)
    comparative = rng.choice(("taller", "older", "younger", "richer", "shorter", "poorer"))
    be = "are" if event.agent.plural else "is"
    if good:
        return sentence(joined(event.agent, be, comparative, "than", event.patient))
    degree, word = rng.choice((("more", "than"), ("most", "than"), ("", "as"), ("so", "than")))
    return sentence(joined(event.agent, be, degree, comparative, word, event.patient))


def _coordination(rng: Random, good: bool) -> str:
    """Both the chef and the waiter slept / *Both the chef or the waiter slept."""
    event = _event(rng, tenses=("past",), intransitive=0.6, adjective=0.0)
    other = grammar.with_other_agent(event, rng)
    assert other is not None
    first, second = rng.choice((("both", "and"), ("either", "or"), ("neither", "nor")))
    if not good:
        first, second = rng.choice((("both", "or"), ("neither", "and"), ("either", "nor")))
    subject = joined(first, event.agent, second, replace(other.agent, adjective=""))
    return sentence(joined(subject, event.verb.past, event.patient or "", event.place))


def _infinitive(rng: Random, good: bool) -> str:
    """The chef wants to cook the soup / *The chef wants cook the soup."""
    event = _event(rng, tenses=("past",), plural=0.0, intransitive=0.2)
    verb = rng.choice(("wants", "wanted", "hopes", "plans", "decided", "tried", "refused"))
    form = joined("to", event.verb.base)
    if not good:
        base, third = event.verb.base, event.verb.third
        form = rng.choice((base, joined("to", event.verb.ing), joined("to", third)))
    return sentence(joined(event.agent, verb, form, event.patient or "", event.place, event.time))


def _long_question(rng: Random, good: bool) -> str:
    """What did Mary say that the chef cooked / *What did Mary say that the chef cooked it?"""
    event = _event(rng, social=False, tenses=("past",), plural=0.0, time=0.0, adjective=0.0)
    person = sample_person(rng, event.scene, other_than=event.agent)
    verb = rng.choice(("say", "think", "believe"))
    start = rng.choice(("what did", "what will"))
    if good:
        clause = joined("that", event.agent, event.verb.past, event.place)
    elif rng.random() < 0.5:
        clause = joined("that", event.agent, event.verb.past, "it", event.place)
    else:
        clause = joined(event.agent, "that", event.verb.past, event.place)
    return sentence(joined(start, person, verb, clause), "?")


def _raising(rng: Random, good: bool) -> str:
    """The soup is said to have been / *said have been cooked by the chef."""
    event = _event(rng, social=False, tenses=("past",), plural=0.0)
    assert event.patient is not None
    said = rng.choice(("said", "believed", "reported"))
    to = "to have been" if good else rng.choice(("have been", "to has been", "to have"))
    return sentence(
        joined(event.patient, "is", said, to, event.verb.participle, "by", event.agent, event.place)
    )


OTHER_PHENOMENA: tuple[Phenomenon, ...] = (
    _cleft,
    _existential,
    _two_objects,
    _comparison,
    _coordination,
    _infinitive,
    _long_question,
    _raising,
)


def acceptable(rng: Random) -> str:
    """Return an acceptable sentence of any construction."""
    return rng.choice(PHENOMENA + OTHER_PHENOMENA)(rng, True)
