"""Pretraining text for the tiny language models: short documents from the suite's own grammar.

The sentences of a document are about the same thing, so that predicting a masked word of one is
easier with the other in sight. There are no labels, and no sentence of an evaluation set
(`grammar.is_held_out`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from moe_runner.tasks.mini import constructions, grammar, lexicon
from moe_runner.tasks.mini.grammar import Event, joined, sentence

_SCENES = lexicon.SCENES + lexicon.OTHER_SCENES
_TENSES = ("past", "past", "past", "past", "present", "future", "progressive", "perfect")
_MAX_LINES = 6

# A line is a lead-in ("in other words,", often ""), a clause, and a mark at the end. Neither
# the clause nor the whole may be held out.
Line = tuple[str, str, str]


def documents(*, count: int, seed: int, kinds: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Yield documents of 2 to 6 sentences each.

    Args:
        count: number of documents.
        seed: another seed gives other documents; the same seed gives the same everywhere.
        kinds: names of `_KINDS`; None: all.
    """
    rng = Random(f"corpus/{seed}")
    chosen = [_KINDS[kind] for kind in kinds or _KINDS]
    writers, weights = [kind[0] for kind in chosen], [kind[1] for kind in chosen]
    for _ in range(count):
        lines: list[Line] = []
        while len(lines) < 2:
            write = rng.choices(writers, weights=weights)[0]
            lines = [line for line in write(rng) if not _is_held_out(line)]
        yield [sentence(joined(lead, clause), mark) for lead, clause, mark in lines[:_MAX_LINES]]


def _is_held_out(line: Line) -> bool:
    lead, clause, _ = line
    return grammar.is_held_out(clause) or grammar.is_held_out(joined(lead, clause))


def _event(rng: Random) -> Event:
    return grammar.sample_event(rng, _SCENES, intransitive=0.1, tenses=_TENSES, adjective=0.2)


def _account(rng: Random) -> list[Line]:
    """Tell an event, and what follows from it and what does not."""
    event = _event(rng)
    lines = [("", grammar.active(event), ".")]
    for _ in range(rng.randint(2, 5)):
        follow = rng.choice((_restatement, _restatement, _consequence, _denial, _error, _addition))
        lines.append(follow(rng, event))
    return lines


def _restatement(rng: Random, event: Event) -> Line:
    lead = rng.choice(("in other words,", "that is,", "it is true that", "", ""))
    return lead, grammar.restated(event, rng), "."


def _consequence(rng: Random, event: Event) -> Line:
    general = grammar.generalized(event, rng)
    if rng.random() < 0.6:
        general = grammar.without_details(general)
    return rng.choice(("so", "it is true that", "")), grammar.active(general), "."


def _false_version(rng: Random, event: Event) -> Event:
    return grammar.changed(event, rng, grammar.EXCLUDING_CHANGES) or replace(event, negated=True)


def _denial(rng: Random, event: Event) -> Line:
    other = replace(_false_version(rng, event), negated=True)
    return rng.choice(("so", "but", "")), grammar.active(other), "."


def _error(rng: Random, event: Event) -> Line:
    other = _false_version(rng, event) if rng.random() < 0.6 else replace(event, negated=True)
    return rng.choice(("it is false that", "it is wrong that")), grammar.active(other), "."


def _addition(rng: Random, event: Event) -> Line:
    change = rng.choice((grammar.with_other_verb, grammar.with_other_patient))
    other = change(event, rng) or _event(rng)
    return rng.choice(("also,", "then", "later,")), grammar.active(other), "."


def _conversation(rng: Random) -> list[Line]:
    """Tell an event, then ask about it and answer."""
    event = _event(rng)
    lines = [("", grammar.active(event), ".")] if rng.random() < 0.6 else []
    for _ in range(rng.randint(1, 2)):
        askable = [part for part in ("agent", "patient", "place", "time") if getattr(event, part)]
        asked = rng.choice(askable)
        if rng.random() < 0.4:
            truth = rng.random() < 0.5
            claim = event if truth else _false_version(rng, event)
            lines.append(("", grammar.yes_no_question(claim), "?"))
            lines.append(("yes," if truth else "no,", grammar.restated(event, rng), "."))
        else:
            lines.append(("", grammar.wh_question(event, asked), "?"))
            lines.append(("", grammar.restated(event, rng), "."))
    return lines


def _attempt(rng: Random) -> list[Line]:
    """Tell that somebody tried something, and what came of it."""
    event = grammar.sample_event(rng, _SCENES, intransitive=0.1)
    happened = rng.random() < 0.4
    outcome = rng.choice(lexicon.SUCCEEDING if happened else lexicon.FAILING)
    result = replace(event, negated=not happened)
    wish = grammar.with_matrix_verb(event, rng.choice(lexicon.INTENDING))
    return [
        ("", wish, "."),
        (rng.choice(("then", "")), grammar.with_matrix_verb(event, outcome), "."),
        (rng.choice(("so", "in other words,", "")), grammar.restated(result, rng), "."),
    ]


def _circumstances(rng: Random) -> list[Line]:
    """Tell an event, how or why it was done, and who said so."""
    event = _event(rng)
    addition = rng.choice(lexicon.REASONS + lexicon.MANNERS)
    source = rng.choice(lexicon.SOURCES)
    return [
        ("", grammar.active(event), "."),
        ("", joined(grammar.active(grammar.without_details(event)), addition), "."),
        (f"{source} said that", grammar.restated(event, rng), "."),
        (rng.choice(lexicon.TWEET_STARTS), grammar.restated(event, rng), rng.choice(".!")),
    ]


def _knowledge(rng: Random) -> list[Line]:
    """Tell what is known, and what is only supposed."""
    event = _event(rng)
    other = grammar.sample_event(rng, (event.scene,), intransitive=0.7, tenses=(event.tense,))
    known = rng.random() < 0.5
    link = rng.choice(lexicon.FACTUAL_LINKS if known else lexicon.OPEN_LINKS)
    verb = rng.choice(lexicon.KNOWING if known else lexicon.BELIEVING)
    person = joined(other.agent, rng.choice(lexicon.NEIGHBORHOOD), event.agent)
    told = grammar.active(event)
    when = rng.choice(lexicon.TIME_LINKS)
    return [
        ("", f"{grammar.active(other)} {when} {told}", "."),
        ("", f"{link} {told}, {grammar.active(other)}", "."),
        ("", joined(person, verb, "that", told), "."),
        ("it is true that" if known else "nobody knows whether", told, "."),
    ]


def _style_guide(rng: Random) -> list[Line]:
    """Line up well-formed sentences of any construction."""
    return [("", constructions.acceptable(rng), "") for _ in range(rng.randint(3, 5))]


def _opinions(rng: Random) -> list[Line]:
    """Praise or blame one thing."""
    domain = rng.choice((grammar.MOVIES, grammar.MOVIES, grammar.MEALS, grammar.PHONES))
    positive = rng.random() < 0.5
    lines = [
        (rng.choice(("", "", "also,")), grammar.review(rng, domain, positive=positive), ".")
        for _ in range(rng.randint(2, 4))
    ]
    verdict = rng.choice(_VERDICTS[positive])
    return [*lines, ("", f"{verdict} {rng.choice(domain.nouns)}", ".")]


def _web_questions(rng: Random) -> list[Line]:
    """Ask a question in several ways, and answer it."""
    query = grammar.sample_query(rng)
    lines = [("", grammar.asked(query, rng), "?")]
    for _ in range(rng.randint(1, 3)):
        lines.append((rng.choice(("", "in other words,")), grammar.asked(query, rng), "?"))
    return [*lines, ("", grammar.answer(query, rng), ".")]


_VERDICTS = {
    True: ("in short, I recommend this", "everybody should try this", "I was happy with this"),
    False: ("in short, I warn against this", "nobody needs this", "I was unhappy with this"),
}
_KINDS = {  # name -> writer, and how often it is chosen
    "account": (_account, 10),
    "conversation": (_conversation, 6),
    "attempt": (_attempt, 2),
    "circumstances": (_circumstances, 2),
    "knowledge": (_knowledge, 2),
    "style_guide": (_style_guide, 3),
    "opinions": (_opinions, 5),
    "web_questions": (_web_questions, 4),
}
