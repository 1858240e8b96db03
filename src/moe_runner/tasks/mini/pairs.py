"""The pairs of `glue_mini` in which one text follows from another or answers it: mnli, qnli, rte.

A maker takes the source of chance and the label that is asked for, and gives the texts of one
example, in the order of its columns; None where the dice led nowhere.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from moe_runner.tasks.mini import grammar, lexicon
from moe_runner.tasks.mini.grammar import (
    Event,
    active,
    changed,
    generalized,
    joined,
    passive,
    restated,
    sample_event,
    sentence,
    without_details,
)
from moe_runner.tasks.mini.lexicon import Scene

Texts = tuple[str, ...] | None

# What makes two sentences report different things, from the hardest to see to the easiest.
SUBTLE_CHANGES = (
    grammar.swapped,
    grammar.with_opposite_verb,
    grammar.with_opposite_adjective,
)
PLAIN_CHANGES = (
    grammar.with_other_agent,
    grammar.with_other_patient,
    grammar.with_other_verb,
    grammar.with_other_place,
)


# ---------------------------------------------------------------------------------------------
# mnli: entailed (0), undecided (1), contradicted (2)


def inference(rng: Random, label: int, scenes: tuple[Scene, ...] = lexicon.SCENES) -> Texts:
    """Tell an event, and what follows from it (0), is left open (1) or contradicts it (2)."""
    event = sample_event(rng, scenes, intransitive=0.1, tenses=("past", "past", "future"), time=0.3)
    return (_entailed, _undecided, _contradicted)[label](rng, event)


def inference_captions(rng: Random, label: int) -> Texts:
    """Do the same with events that are seen in a picture."""
    scenes = lexicon.SCENES + lexicon.OTHER_SCENES
    event = sample_event(rng, scenes, intransitive=0.2, tenses=("progressive",), adjective=0.25)
    event = grammar.indefinite(event)
    return (_entailed, _undecided, _contradicted)[label](rng, event)


def _pair(first: str, second: str) -> Texts:
    return sentence(first), sentence(second)


def _told(rng: Random, event: Event) -> str:
    """Tell the event of a premise, now and then with a reason."""
    words = active(event) if rng.random() < 0.6 else restated(event, rng)
    return joined(words, rng.choice(lexicon.REASONS) if rng.random() < 0.25 else "")


def _entailed(rng: Random, event: Event) -> Texts:
    kind = rng.random()
    if kind > 0.85:
        reason = rng.choice(lexicon.REASONS)
        return _pair(joined(active(event), reason), joined(restated(event, rng), reason))
    denied = replace(event, negated=True)
    if kind < 0.15:
        return _pair(active(denied), restated(denied, rng))
    if kind < 0.3 and event.tense == "past":
        premise = grammar.with_matrix_verb(event, rng.choice(lexicon.FAILING))
        return _pair(premise, active(grammar.reworded(denied, rng)))
    if kind < 0.4 and event.tense == "past":
        premise = grammar.with_matrix_verb(event, rng.choice(lexicon.SUCCEEDING))
        return _pair(premise, restated(event, rng))
    fewer = without_details(event) if rng.random() < 0.7 else event
    if rng.random() < 0.6:
        fewer = generalized(fewer, rng)
    return _pair(_told(rng, event), restated(fewer, rng))


def _undecided(rng: Random, event: Event) -> Texts:
    kind = rng.random()
    if kind < 0.15 and event.tense == "past":
        premise = grammar.with_matrix_verb(event, rng.choice(lexicon.INTENDING))
        return _pair(premise, restated(event, rng))
    if kind < 0.4:
        other = grammar.with_other_verb(event, rng)
        if other is None or other.verb in grammar.VERB_OPPOSITES.get(event.verb.base, ()):
            return None
        return _pair(_told(rng, event), restated(without_details(other), rng))
    if kind < 0.6:
        bare = replace(event, agent=replace(event.agent, adjective=""))
        if bare.agent.noun.is_name:
            return None
        adjective = rng.choice(lexicon.PERSON_ADJECTIVES)
        other = replace(bare, agent=replace(bare.agent, adjective=adjective))
        return _pair(_told(rng, bare), restated(other, rng))
    addition = rng.choice(lexicon.REASONS if kind < 0.85 else lexicon.MANNERS)
    premise = active(event) if rng.random() < 0.6 else restated(event, rng)
    fewer = without_details(event) if kind > 0.85 or rng.random() < 0.7 else event
    return _pair(premise, joined(active(grammar.reworded(fewer, rng)), addition))


def _contradicted(rng: Random, event: Event) -> Texts:
    kind = rng.random()
    denied = replace(event, negated=True)
    if kind < 0.1 and event.tense == "past":
        premise = grammar.with_matrix_verb(event, rng.choice(lexicon.FAILING))
        return _pair(premise, restated(event, rng))
    if kind < 0.2 and event.tense == "past":
        hypothesis = grammar.with_matrix_verb(event, rng.choice(lexicon.FAILING))
        return _pair(_told(rng, event), hypothesis)
    if kind < 0.3:
        return _pair(active(denied), restated(event, rng))
    if kind < 0.4:
        return _pair(_told(rng, event), grammar.by_nobody(without_details(event)))
    if kind < 0.6:
        return _pair(_told(rng, event), restated(denied, rng))
    changes = (
        grammar.with_opposite_verb,
        grammar.with_opposite_adjective,
        grammar.with_other_place,
        grammar.with_other_time,
    )
    other = changed(event, rng, changes)
    return _pair(_told(rng, event), restated(other, rng)) if other else None


# ---------------------------------------------------------------------------------------------
# qnli: the sentence answers the question (0) or not (1)


def question_and_answer(rng: Random, label: int) -> Texts:
    """Ask for a part of an event, and tell it (0) or something else (1)."""
    return _asked_and_told(rng, label, lexicon.SCENES, lambda words: words)


def question_and_news(rng: Random, label: int) -> Texts:
    """Do the same with other scenes, told as the news tell them."""

    def report(words: str) -> str:
        source = rng.choice(lexicon.SOURCES)
        return rng.choice((f"{source} said that {words}", f"{words}, {source} said", words))

    return _asked_and_told(rng, label, lexicon.OTHER_SCENES, report)


def _asked_and_told(
    rng: Random, label: int, scenes: tuple[Scene, ...], report: Callable[[str], str]
) -> Texts:
    event = sample_event(rng, scenes, place=0.75, time=0.6)
    asked = rng.choice([p for p in ("agent", "patient", "place", "time") if getattr(event, p)])
    known = replace(
        event,
        place=event.place if asked == "place" or rng.random() < 0.3 else "",
        time=event.time if asked == "time" or rng.random() < 0.3 else "",
    )
    question = sentence(grammar.wh_question(grammar.reworded(known, rng, share=0.4), asked), "?")
    told: Event | None = event
    as_passive_only = False
    if label == 1:
        kind = rng.random()
        if kind < 0.3 or asked == "patient" and kind < 0.6:  # about something else
            told = sample_event(rng, scenes, place=0.75, time=0.6)
            if grammar.is_same_verb(told.verb, event.verb):
                return None
        elif kind < 0.45 or asked == "patient":  # about the same people or things
            change = rng.choice((grammar.with_other_verb, grammar.with_other_patient))
            told = (
                change(event, rng) if asked != "patient" else grammar.with_other_agent(event, rng)
            )
        elif asked in ("place", "time"):  # the answer is missing
            told = grammar.without(event, asked)
            if not told.place and not told.time:
                return None
        else:  # asked == "agent"
            as_passive_only = True
    if told is None:
        return None
    words = passive(told, by=False) if as_passive_only else restated(told, rng)
    return question, sentence(report(words))


# ---------------------------------------------------------------------------------------------
# rte: entailed (0) or not (1)


def longer_inference(rng: Random, label: int) -> Texts:
    """A premise of two events; the hypothesis is one of them, or is not in the premise."""
    first = sample_event(rng, intransitive=0.05, place=0.5, time=0.4)
    second = sample_event(rng, (first.scene,), intransitive=0.2, place=0.0, time=0.0)
    nouns = [p.noun for e in (first, second) for p in (e.agent, e.patient) if p]
    if len(set(nouns)) < len(nouns) or grammar.is_same_verb(first.verb, second.verb):
        return None
    if rng.random() < 0.4 and not first.agent.noun.is_name:
        second = replace(second, agent=first.agent)
        group = grammar.verb_group(second, plural=second.agent.plural)
        premise = joined(grammar.subject_relative(first), group, second.patient or "")
    else:
        link = rng.choice((", and", *(f" {link}" for link in lexicon.TIME_LINKS)))
        premise = f"{_voiced(rng, first)}{link} {_voiced(rng, second)}"
    told = rng.choice((first, second))
    kind = rng.random()
    if label == 0:
        fewer = without_details(told) if rng.random() < 0.7 else told
        if kind < 0.35:
            fewer = generalized(fewer, rng)
        return _pair(premise, restated(fewer, rng))
    other: Event | None
    if kind < 0.5:  # about something else
        other = sample_event(rng, (first.scene,), place=0.0, time=0.0)
        if other.agent.noun not in nouns and rng.random() < 0.5:
            other = replace(other, agent=told.agent)
        if any(grammar.is_same_verb(other.verb, event.verb) for event in (first, second)):
            return None
    elif kind < 0.65:  # the other one did it
        absent = first if told is second else second
        if first.agent == second.agent:
            return None
        other = replace(without_details(told), agent=absent.agent)
    else:
        other = changed(told, rng, (*SUBTLE_CHANGES[1:], grammar.negated, *PLAIN_CHANGES))
    return _pair(premise, restated(other, rng)) if other else None


def _voiced(rng: Random, event: Event) -> str:
    return passive(event) if event.patient and rng.random() < 0.3 else active(event)


def overlap_trap(rng: Random, label: int) -> Texts:
    """All words of the hypothesis are in the premise, whether it follows or not (as in HANS)."""
    scenes = lexicon.SCENES + lexicon.OTHER_SCENES
    event = sample_event(rng, scenes, social=True, place=0.2, time=0.2)
    other = sample_event(rng, (event.scene,), intransitive=1.0, place=0.3, time=0.0)
    nouns = {phrase.noun for phrase in (event.agent, event.patient, other.agent) if phrase}
    if len(nouns) < 3 or event.agent.noun.is_name:
        return None
    return rng.choice(_TRAPS)(rng, label == 0, event, other)


def _trap_swap(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    turned = grammar.swapped(event, rng)
    assert turned is not None
    if rng.random() < 0.5:
        return _pair(active(event), passive(event) if entailed else active(turned))
    return _pair(passive(event), active(event if entailed else turned))


def _trap_modifier(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    near = rng.choice(lexicon.NEIGHBORHOOD)
    premise = joined(event.agent, near, other.agent, other.verb.past, other.place)
    subject = event.agent if entailed else other.agent
    return _pair(premise, joined(subject, other.verb.past, other.place))


def _trap_relative(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    event = replace(event, place="", time="")
    assert event.patient is not None
    premise = joined(grammar.subject_relative(event), other.verb.past, other.place)
    if entailed and rng.random() < 0.5:
        return _pair(premise, active(event))
    subject = event.agent if entailed else event.patient
    return _pair(premise, joined(subject, other.verb.past, other.place))


def _trap_clause(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    links = lexicon.FACTUAL_LINKS if entailed else lexicon.OPEN_LINKS
    link, told = rng.choice(links), rng.choice((event, other))
    premise = f"{link} {active(event)}, {active(other)}"
    return _pair(premise, active(told))


def _trap_report(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    verbs = lexicon.KNOWING if entailed else lexicon.BELIEVING
    premise = joined(other.agent, rng.choice(verbs), "that", active(event))
    return _pair(premise, active(event))


def _trap_alternative(rng: Random, entailed: bool, event: Event, other: Event) -> Texts:
    link = "and" if entailed else "or"
    premise = joined(event.agent, link, other.agent, other.verb.past, other.place)
    subject = rng.choice((event.agent, other.agent))
    return _pair(premise, joined(subject, other.verb.past, other.place))


_TRAPS = (
    _trap_swap,
    _trap_modifier,
    _trap_relative,
    _trap_clause,
    _trap_report,
    _trap_alternative,
)
