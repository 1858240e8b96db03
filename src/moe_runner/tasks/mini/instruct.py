"""`instruct_mini`: instructions about made-up sentences, and multiple-choice questions like MMLU's.

A record is a meaning (an `Event`, a review) and something to do with it whose result is known. The
questions ask the same things of other scenes, as MMLU asks what no instruction taught; their
subjects are `agents`, `patients`, `places`, `times` and `reviews`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from moe_runner.tasks.mini import grammar, lexicon
from moe_runner.tasks.mini.grammar import (
    Event,
    active,
    passive,
    sample_event,
    sentence,
    wh_question,
    yes_no_question,
)
from moe_runner.tasks.mini.lexicon import Scene

VERSION = 1  # raise it whenever a generated text changes

RECORDS = 1124  # 8 * 128 to train on when 100 are held out
QUESTIONS = 40  # of each subject
SOLVED = 5  # of each subject
PARTS = {"agents": "agent", "patients": "patient", "places": "place", "times": "time"}
SUBJECTS = (*PARTS, "reviews")

Record = tuple[str, str, str]  # instruction, input, output


def records(*, seed: int = 0) -> list[dict[str, str]]:
    """Generate instructions with responses, all different.

    Args:
        seed: another seed gives other records.

    Returns:
        `RECORDS` records with instruction, input and output.
    """
    rng = Random(f"instruct_mini/records/{seed}")
    found: dict[Record, None] = {}
    while len(found) < RECORDS:
        found.setdefault(rng.choice(_KINDS)(rng))
    return [dict(zip(("instruction", "input", "output"), each, strict=True)) for each in found]


def questions(*, seed: int = 0) -> list[dict[str, Any]]:
    """Generate multiple-choice questions: `QUESTIONS` and `SOLVED` of each subject.

    Args:
        seed: another seed gives other questions.

    Returns:
        Rows with subject, question, choices (four different texts), answer (0 to 3) and split
        (test, or dev for the solved ones).
    """
    rng = Random(f"instruct_mini/questions/{seed}")
    rows = []
    for subject in SUBJECTS:
        seen: set[tuple[str, str]] = set()
        while len(seen) < QUESTIONS + SOLVED:
            question, right, wrong = _question(rng, subject, lexicon.OTHER_SCENES)
            if (question, right) in seen:
                continue
            split = "dev" if len(seen) < SOLVED else "test"
            seen.add((question, right))
            choices = [right, *wrong]
            rng.shuffle(choices)
            rows.append(
                {"subject": subject, "question": question, "choices": choices, "split": split,
                 "answer": choices.index(right)}
            )  # fmt: skip
    return rows


def _event(rng: Random, scenes: tuple[Scene, ...] = lexicon.SCENES) -> Event:
    """Choose a short event that has every part that can be asked for."""
    return sample_event(rng, scenes, place=1.0, time=1.0, adjective=0.0, plural=0.0)


def _part(event: Event, part: str) -> str:
    return str(getattr(event, part))


def _told(event: Event) -> str:
    return sentence(active(event))


def _name_part(rng: Random) -> Record:
    event, part = _event(rng), rng.choice(tuple(PARTS.values()))
    return sentence(wh_question(event, part), "?"), _told(event), _part(event, part)


def _rewrite(rng: Random) -> Record:
    event = replace(_event(rng), time="")
    made: list[tuple[str, Callable[[], str]]] = [
        ("Turn the sentence into a question.", lambda: sentence(yes_no_question(event), "?")),
        ("Say that it did not happen.", lambda: _told(replace(event, negated=True))),
        ("Tell the same in the passive voice.", lambda: sentence(passive(event))),
        ("Repeat the sentence.", lambda: _told(event)),
    ]
    instruction, make = rng.choice(made)
    return instruction, _told(event), make()


def _judge(rng: Random) -> Record:
    positive = rng.random() < 0.5
    text = sentence(grammar.review(rng, grammar.MOVIES, positive=positive))
    return "Is the review positive or negative?", text, "positive" if positive else "negative"


def _choose(rng: Random) -> Record:
    question, right, wrong = _question(rng, rng.choice(SUBJECTS), lexicon.SCENES)
    choices = [right, *wrong]
    rng.shuffle(choices)
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=True)]
    answer = "ABCD"[choices.index(right)]
    return question, "\n".join(lines), answer


def _question(rng: Random, subject: str, scenes: tuple[Scene, ...]) -> tuple[str, str, list[str]]:
    """Make a question, its right answer and three wrong ones, all different."""
    if subject == "reviews":
        domain = rng.choice((grammar.MOVIES, grammar.MEALS))
        positive = rng.random() < 0.5
        texts = [
            sentence(grammar.review(rng, domain, positive=(i == 0) == positive, hard=0.0))
            for i in range(4)
        ]
        if len(set(texts)) < 4:
            return _question(rng, subject, scenes)
        noun = rng.choice(domain.nouns)
        kind = "positive" if positive else "negative"
        return f"Which of these opinions of a {noun} is {kind}?", texts[0], texts[1:]
    event, part = _event(rng, scenes), PARTS[subject]
    asked = f"{_told(event)} {sentence(wh_question(event, part), '?')}"
    others = {_part(_event(rng, scenes), part) for _ in range(30)} - {_part(event, part)}
    if len(others) < 3:
        return _question(rng, subject, scenes)
    return asked, _part(event, part), rng.sample(sorted(others), 3)


_KINDS: tuple[Callable[[Random], Record], ...] = (_name_part, _rewrite, _judge, _choose, _choose)
