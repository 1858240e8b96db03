"""`summarisation_mini` and `squad_mini`: short texts of the grammar, with a summary or a question.

A text tells a few events of one scene. Its summary is the first of them in plain words; the answer
to its question is a phrase that stands in the text, in one event only.

No sentence of a train split occurs in a validation split, or the other way round, nor in the text
that the bundled backbones were pretrained on: `grammar.is_held_out` divides the sentences.
"""

from random import Random

from moe_runner.tasks.mini import grammar, lexicon
from moe_runner.tasks.mini.grammar import Event, active, sample_event, sentence

VERSION = 1  # raise it whenever a generated text changes
SIZES = {"train": 2000, "validation": 200}


def summaries(split: str, *, seed: int = 0) -> dict[str, list[str]]:
    """Generate documents with their summaries.

    A document tells an event, in an indirect way three times in four, and something else about it;
    then other events of its scene. The summary says the first event without its details.

    Args:
        split: a key of `SIZES`.
        seed: another seed gives other examples.

    Returns:
        `document` and `summary`, each as often as `SIZES` says.
    """
    rng = Random(f"summarisation_mini/{split}/{seed}")
    rows: dict[str, str] = {}
    while len(rows) < SIZES[split]:
        event = _event(rng, split)
        lead = rng.choice((_told, _reported, _cleft, _passive))(rng, event)
        more = grammar.restated(event, rng)
        others = [active(other) for other in _others(rng, split, event, rng.randint(1, 3))]
        if not _is_of_split(lead, split) or not _is_of_split(more, split):
            continue
        document = " ".join(sentence(words) for words in (lead, more, *others))
        rows[document] = sentence(active(grammar.without_details(event)))
    return {"document": list(rows), "summary": list(rows.values())}


def questions(split: str, *, seed: int = 0) -> dict[str, list]:
    """Generate questions about a text, in the form of SQuAD.

    Args:
        split: a key of `SIZES`.
        seed: another seed gives other examples.

    Returns:
        `question`, `context` and `answers` ({"text": [...], "answer_start": [...]}, the start in
        characters), each as often as `SIZES` says.
    """
    rng = Random(f"squad_mini/{split}/{seed}")
    rows: dict[tuple[str, str], str] = {}
    while len(rows) < SIZES[split]:
        event = _event(rng, split)
        events = [event, *_others(rng, split, event, rng.randint(1, 3))]
        rng.shuffle(events)
        context = " ".join(sentence(active(each)) for each in events)
        parts = [part for part in ("agent", "patient", "place", "time") if getattr(event, part)]
        asked = rng.choice(parts)
        answer = str(getattr(event, asked))
        if context.lower().count(answer.lower()) == 1:
            rows[sentence(grammar.wh_question(event, asked), "?"), context] = answer
    answers = []
    for (_, context), answer in rows.items():
        start = context.lower().index(answer.lower())
        answers.append({"text": [context[start : start + len(answer)]], "answer_start": [start]})
    question, contexts = zip(*rows, strict=True)
    return {"question": list(question), "context": list(contexts), "answers": answers}


def _is_of_split(words: str, split: str) -> bool:
    return grammar.is_held_out(words) == (split != "train")


def _event(rng: Random, split: str, scenes: tuple[lexicon.Scene, ...] = lexicon.SCENES) -> Event:
    """Choose an event whose plain wording may be in the split."""
    while True:
        event = sample_event(rng, scenes, adjective=0.2, place=0.7, time=0.5)
        if _is_of_split(active(event), split):
            return event


def _others(rng: Random, split: str, event: Event, count: int) -> list[Event]:
    """Choose events of the same scene, each with a verb and an agent of its own."""
    found = [event]
    while len(found) <= count:
        other = _event(rng, split, (event.scene,))
        if not any(
            other.verb == each.verb or other.agent.noun == each.agent.noun for each in found
        ):
            found.append(other)
    return found[1:]


def _told(rng: Random, event: Event) -> str:
    return active(event)


def _reported(rng: Random, event: Event) -> str:
    return f"{rng.choice(lexicon.SOURCES)} said that {active(event)}"


def _cleft(rng: Random, event: Event) -> str:
    return grammar.cleft(event, focus="agent")


def _passive(rng: Random, event: Event) -> str:
    return grammar.passive(event)
