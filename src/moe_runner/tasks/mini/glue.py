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
    generalized,
    joined,
    passive,
    restated,
    sample_event,
    sentence,
    without_details,
)
from moe_runner.tasks.mini.lexicon import Scene

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

# The texts of one example, in the order of its columns; None where the dice led nowhere.
Texts = tuple[str, ...] | None
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
        return lambda rng, label: _inference(rng, label, lexicon.OTHER_SCENES)
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

# What makes two sentences report different things, from the hardest to see to the easiest.
_SUBTLE_CHANGES = (
    grammar.swapped,
    grammar.with_opposite_verb,
    grammar.with_opposite_adjective,
)
_CLEAR_CHANGES = (grammar.negated, grammar.with_other_tense)
_PLAIN_CHANGES = (
    grammar.with_other_agent,
    grammar.with_other_patient,
    grammar.with_other_verb,
    grammar.with_other_place,
)


def _different(rng: Random, event: Event) -> Event | None:
    """Return an event that cannot pass for this one, but has words in common with it."""
    kind = rng.random()
    if kind < 0.2:
        return changed(event, rng, _SUBTLE_CHANGES)
    if kind < 0.5:
        return changed(event, rng, _CLEAR_CHANGES)
    other: Event | None = event
    for change in rng.sample(_PLAIN_CHANGES, 2 if rng.random() < 0.6 else 1):
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


# ---------------------------------------------------------------------------------------------
# mnli: entailed (0), undecided (1), contradicted (2)


def _inference(rng: Random, label: int, scenes: tuple[Scene, ...] = lexicon.SCENES) -> Texts:
    event = sample_event(rng, scenes, intransitive=0.1, tenses=("past", "past", "future"), time=0.3)
    return (_entailed, _undecided, _contradicted)[label](rng, event)


def _inference_captions(rng: Random, label: int) -> Texts:
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


def _question_and_answer(rng: Random, label: int) -> Texts:
    return _asked_and_told(rng, label, lexicon.SCENES, lambda words: words)


def _question_and_news(rng: Random, label: int) -> Texts:
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


def _longer_inference(rng: Random, label: int) -> Texts:
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
        other = changed(told, rng, (*_SUBTLE_CHANGES[1:], grammar.negated, *_PLAIN_CHANGES))
    return _pair(premise, restated(other, rng)) if other else None


def _voiced(rng: Random, event: Event) -> str:
    return passive(event) if event.patient and rng.random() < 0.3 else active(event)


def _overlap_trap(rng: Random, label: int) -> Texts:
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

_MAKERS: dict[str, Maker] = {
    "cola": _acceptability,
    "sst2": _sentiment,
    "mrpc": _paraphrase,
    "qqp": _duplicate,
    "mnli": _inference,
    "qnli": _question_and_answer,
    "rte": _longer_inference,
}
_OTHER_MAKERS: dict[str, Maker] = {
    "cola": _acceptability_other,
    "sst2": _sentiment_other,
    "mrpc": _duplicate,
    "qqp": _tweet_pair,
    "mnli": _inference_captions,
    "qnli": _question_and_news,
    "rte": _overlap_trap,
}
