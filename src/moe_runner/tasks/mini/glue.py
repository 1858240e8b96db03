"""`glue_mini`: eight synthetic tasks with GLUE's names, columns and label spaces.

Every example is made from a meaning whose relation to its partner is known, so that labels are
right by construction. A task's examples mix easy ones (a telling word, little overlap) with hard
ones (word order, a swapped role, a missing slot). The out-of-domain split of a task mirrors what
GLUE-X pairs it with.

No sentence of a train split occurs in a validation or an out-of-domain split, or the other way
round: `grammar.is_held_out` divides the sentences themselves.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from moe_runner.tasks.mini import grammar, lexicon
from moe_runner.tasks.mini.constructions import OTHER_PHENOMENA, PHENOMENA
from moe_runner.tasks.mini.grammar import (
    Event,
    active,
    changed,
    joined,
    passive,
    restated,
    sample_event,
    sentence,
)
from moe_runner.tasks.mini.pairs import (
    PLAIN_CHANGES,
    SUBTLE_CHANGES,
    Texts,
    inference,
    inference_captions,
    longer_inference,
    overlap_trap,
    question_and_answer,
    question_and_news,
)

VERSION = 1  # raise it whenever a generated text changes

COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
TASKS = tuple(COLUMNS)
NUM_LABELS = {task: 1 if task == "stsb" else 3 if task == "mnli" else 2 for task in TASKS}
SIZES = {
    task: {"train": 2000, "validation": 400, "ood": 400}
    if task != "mnli"
    else {"train": 2400, "validation_matched": 400, "validation_mismatched": 400, "ood": 400}
    for task in TASKS
}
OOD_NAMES = {
    "cola": "constructions",
    "sst2": "products",
    "mrpc": "questions",
    "stsb": "captions",
    "qqp": "tweets",
    "mnli": "captions",
    "qnli": "news",
    "rte": "overlap_traps",
}
# Share of each label, where they are not equally frequent.
_LABEL_WEIGHTS = {"cola": (0.35, 0.65), "mrpc": (0.4, 0.6), "qqp": (0.6, 0.4)}

# Makes an example with the label that is asked for (stsb: chooses the score itself).
Maker = Callable[[Random, int], Texts]


def generate(task: str, split: str, *, seed: int = 0) -> dict[str, list]:
    """Generate one split of a task.

    Args:
        task: a name in `TASKS`.
        split: "train", "validation" or "ood"; for mnli "validation_matched" and
            "validation_mismatched" (other scenes) instead of "validation".
        seed: another seed gives other examples.

    Returns:
        GLUE's columns: the texts, `label` (stsb: float 0..5, else int) and `idx`.

    Raises:
        ValueError: if there is no such task or split.
    """
    if task not in SIZES:
        raise ValueError(f"task={task!r} is not in glue_mini; use one of {', '.join(TASKS)}")
    if split not in SIZES[task]:
        raise ValueError(
            f"split={split!r} is not a split of {task}; use one of {', '.join(SIZES[task])}"
        )
    rng = Random(f"glue_mini/{task}/{split}/{seed}")
    size = SIZES[task][split]
    rows: dict[tuple[str, ...], float] = {}
    if task == "stsb":
        for level in _shuffled_labels(rng, size, (1.0,) * 6):
            texts, score = _scored_pair(rng, split, level, rows)
            rows[texts] = score
    else:
        make = _maker(task, split)
        weights = _LABEL_WEIGHTS.get(task, (1.0,) * NUM_LABELS[task])
        for label in _shuffled_labels(rng, size, weights):
            rows[_new_texts(lambda: make(rng, label), split, rows)] = label  # noqa: B023
    columns = [list(column) for column in zip(*rows, strict=True)]
    named = dict(zip(COLUMNS[task], columns, strict=True))
    return {**named, "label": list(rows.values()), "idx": list(range(size))}


def _shuffled_labels(rng: Random, size: int, weights: tuple[float, ...]) -> list[int]:
    """Return `size` labels in exact proportion to the weights, shuffled."""
    total, labels = sum(weights), list[int]()
    for label, weight in enumerate(weights):
        labels += [label] * round(size * weight / total)
    labels = (labels + list(range(len(weights))))[:size]
    rng.shuffle(labels)
    return labels


def _is_of_split(text: str, split: str) -> bool:
    return grammar.is_held_out(text) == (split != "train")


def _fits(texts: tuple[str, ...], split: str, rows: dict[tuple[str, ...], float]) -> bool:
    """Whether the row is new, its texts differ, and all of them may be in the split."""
    if texts in rows or len(texts) != len(set(texts)):
        return False
    return all(_is_of_split(text, split) for text in texts)


def _new_texts(
    make: Callable[[], Texts], split: str, rows: dict[tuple[str, ...], float]
) -> tuple[str, ...]:
    while True:
        texts = make()
        if texts is not None and _fits(texts, split, rows):
            return texts


def _maker(task: str, split: str) -> Maker:
    if split == "ood":
        return _OTHER_MAKERS[task]
    if split == "validation_mismatched":
        return lambda rng, label: inference(rng, label, lexicon.OTHER_SCENES)
    return _MAKERS[task]


# ---------------------------------------------------------------------------------------------
# cola and sst2: one sentence


def _acceptability(rng: Random, label: int) -> Texts:
    return (rng.choice(PHENOMENA)(rng, label == 1),)


def _acceptability_other(rng: Random, label: int) -> Texts:
    return (rng.choice(OTHER_PHENOMENA)(rng, label == 1),)


def _sentiment(rng: Random, label: int) -> Texts:
    return (sentence(grammar.review(rng, grammar.MOVIES, positive=label == 1)),)


def _sentiment_other(rng: Random, label: int) -> Texts:
    domain = rng.choice((grammar.MEALS, grammar.PHONES))
    return (sentence(grammar.review(rng, domain, positive=label == 1)),)


# ---------------------------------------------------------------------------------------------
# mrpc, qqp, stsb: likeness

# Between the subtle changes and the plain ones.
_CLEAR_CHANGES = (grammar.negated, grammar.with_other_tense)


def _different(rng: Random, event: Event) -> Event | None:
    """Return an event that cannot pass for this one, but has words in common with it."""
    kind = rng.random()
    if kind < 0.2:
        return changed(event, rng, SUBTLE_CHANGES)
    if kind < 0.5:
        return changed(event, rng, _CLEAR_CHANGES)
    other: Event | None = event
    for change in rng.sample(PLAIN_CHANGES, 2 if rng.random() < 0.6 else 1):
        other = other and change(other, rng)
    return other


def _news(rng: Random, event: Event) -> str:
    """Report an event, now and then as somebody's words."""
    words = restated(event, rng) if rng.random() < 0.6 else active(event)
    if rng.random() < 0.15:
        words = joined(rng.choice(lexicon.SOURCES), "said that", words)
    return sentence(words)


def _paraphrase(rng: Random, label: int) -> Texts:
    event = sample_event(rng, intransitive=0.05, tenses=("past", "past", "future"), place=0.8)
    other: Event | None = event
    if label == 0:
        other = _different(rng, event)
    elif rng.random() < 0.3:
        other = replace(event, time="")  # a detail may be missing, as in MRPC
    return (_news(rng, event), _news(rng, other)) if other else None


def _duplicate(rng: Random, label: int) -> Texts:
    query = grammar.sample_query(rng, qualifier=0.2 if label == 1 else 0.4)
    other = query if label == 1 else grammar.other_query(query, rng)
    pair = grammar.asked(query, rng), grammar.asked(other, rng)
    return tuple(sentence(words, "?") for words in pair)


def _tweet_pair(rng: Random, label: int) -> Texts:
    """Two short posts; label 1 if they share the same news."""
    event = sample_event(rng, lexicon.OTHER_SCENES, place=0.7, time=0.5)
    other = event if label == 1 else _different(rng, event)
    return (_tweet(rng, event), _tweet(rng, other)) if other else None


def _tweet(rng: Random, event: Event) -> str:
    start = rng.choice(("", *lexicon.TWEET_STARTS))
    words = joined(start, restated(event, rng) if rng.random() < 0.6 else active(event))
    return sentence(words, rng.choice((".", "!", "!")))


# What can be changed in each part of an event, and how much it changes the meaning (of 5 points).
_SCORED_CHANGES = {
    "verb": (
        (grammar.with_other_verb, 1.6),
        (grammar.with_opposite_verb, 1.4),
        (grammar.negated, 1.4),
    ),
    "agent": ((grammar.with_other_agent, 1.3),),
    "patient": ((grammar.with_other_patient, 1.4), (grammar.swapped, 1.2)),
    "property": ((grammar.with_opposite_adjective, 0.8),),
    "place": ((grammar.with_other_place, 0.8),),
    "time": ((grammar.with_other_time, 0.6),),
}


def _scored_pair(
    rng: Random, split: str, level: int, rows: dict[tuple[str, ...], float]
) -> tuple[tuple[str, ...], float]:
    """Make a pair whose likeness is about `level`, 0..5, and the mean score of five readers."""
    tense = "progressive" if split == "ood" else "past"
    while True:
        event = sample_event(rng, tenses=(tense,), place=0.7, time=0.5, adjective=0.2)
        first = _caption(rng, event) if split == "ood" else sentence(active(event))
        if not _is_of_split(first, split):
            continue
        for _ in range(5):
            other, distance = _at_distance(rng, event, 5 - level)
            if other is None:
                continue
            second = _caption(rng, other) if split == "ood" else sentence(restated(other, rng))
            if _fits((first, second), split, rows):
                score = round((5 - distance + rng.uniform(-0.4, 0.4)) * 5) / 5
                return (first, second), min(5.0, max(0.0, score))


def _at_distance(rng: Random, event: Event, distance: int) -> tuple[Event | None, float]:
    """Change an event until it is about so far from what it was; None if the dice fail."""
    if distance >= 4:  # 5: about something else; 4: in the same place, nothing else in common
        scenes = [s for s in lexicon.SCENES if (s == event.scene) == (distance == 4)]
        tenses = (event.tense, "future", "perfect", "present")
        other = sample_event(rng, scenes, intransitive=0.25, tenses=tenses, place=0.7, time=0.5)
        if grammar.is_same_verb(other.verb, event.verb) or other.agent.noun == event.agent.noun:
            return None, 0.0
        place = event.place if distance == 4 else other.place
        return replace(other, place=place), distance - 0.2
    total, result = 0.0, event
    for part in rng.sample(list(_SCORED_CHANGES), rng.randint(1, 3) if distance else 0):
        change, weight = rng.choice(_SCORED_CHANGES[part])
        following = change(result, rng)
        if following is None:
            return None, 0.0
        total, result = total + weight, following
    return (result, total) if abs(total - distance) <= 0.5 else (None, 0.0)


def _caption(rng: Random, event: Event) -> str:
    """Describe an event as if it were seen in a picture."""
    event = grammar.reworded(grammar.indefinite(event), rng, share=0.4)
    as_passive = event.patient is not None and rng.random() < 0.25
    return sentence(passive(event) if as_passive else active(event))


_MAKERS: dict[str, Maker] = {
    "cola": _acceptability,
    "sst2": _sentiment,
    "mrpc": _paraphrase,
    "qqp": _duplicate,
    "mnli": inference,
    "qnli": question_and_answer,
    "rte": longer_inference,
}
_OTHER_MAKERS: dict[str, Maker] = {
    "cola": _acceptability_other,
    "sst2": _sentiment_other,
    "mrpc": _duplicate,
    "qqp": _tweet_pair,
    "mnli": inference_captions,
    "qnli": question_and_news,
    "rte": overlap_trap,
}
