import hashlib
import json
import re
import subprocess
import sys
from functools import cache

import pytest

from moe_runner.tasks.mini import constructions, corpus, grammar, lexicon
from moe_runner.tasks.mini.glue import (
    COLUMNS,
    OOD_NAMES,
    SIZES,
    TASKS,
    VERSION,
    generate,
)
from tests.tasks import baselines

SPLITS = [(task, split) for task in TASKS for split in SIZES[task]]
EVALUATION_SPLITS = [(task, split) for task, split in SPLITS if split != "train"]
HUB_COLUMNS = {  # nyu-mll/glue
    "cola": {"sentence"},
    "sst2": {"sentence"},
    "mrpc": {"sentence1", "sentence2"},
    "stsb": {"sentence1", "sentence2"},
    "qqp": {"question1", "question2"},
    "mnli": {"premise", "hypothesis"},
    "qnli": {"question", "sentence"},
    "rte": {"sentence1", "sentence2"},
}
GOLDEN = {
    "1/cola/train": "9ec964a597cdd4b7",
    "1/cola/validation": "ff5aa48f00acb112",
    "1/cola/ood": "83783d228e048103",
    "1/sst2/train": "099a9a01ef29cd55",
    "1/sst2/validation": "9ba994f230175bbf",
    "1/sst2/ood": "151579f8ac8d87e4",
    "1/mrpc/train": "3fa05e539db87359",
    "1/mrpc/validation": "ba8282d9bc2fc8a1",
    "1/mrpc/ood": "f7e05594ed8085f6",
    "1/stsb/train": "5cb43027cfa65aed",
    "1/stsb/validation": "d10f42b3193e6eb9",
    "1/stsb/ood": "5a494fdea76902f7",
    "1/qqp/train": "8bd5c5622c5e1d09",
    "1/qqp/validation": "556dc6a0e7325a3a",
    "1/qqp/ood": "1593c9415b95a7ad",
    "1/mnli/train": "88433239a9dd15b3",
    "1/mnli/validation_matched": "f0d4f230bf21c47c",
    "1/mnli/validation_mismatched": "3976789ba0bf7151",
    "1/mnli/ood": "a2f54058c515d8c1",
    "1/qnli/train": "e24cd38aa072d203",
    "1/qnli/validation": "98f83b4dcde978b2",
    "1/qnli/ood": "c2bd9f70cdd3e5b3",
    "1/rte/train": "6916107b074f9221",
    "1/rte/validation": "35d10f5321e2b3ba",
    "1/rte/ood": "1349a0d2cf44e26f",
}


@cache
def data(task, split):
    return generate(task, split)


def rows(task, split):
    return list(zip(*(data(task, split)[column] for column in COLUMNS[task]), strict=True))


def texts(task, split):
    return [text for row in rows(task, split) for text in row]


def words(lines):
    return [word for line in lines for word in re.findall(r"\w+", line.lower())]


def fingerprint(columns):
    return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def documents():
    return list(corpus.documents(count=6000, seed=0))


# What a split looks like


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_columns_labels_and_sizes_are_those_of_glue(task, split):
    columns = data(task, split)
    size = SIZES[task][split]
    assert set(columns) == HUB_COLUMNS[task] | {"label", "idx"}
    assert {len(column) for column in columns.values()} == {size}
    assert columns["idx"] == list(range(size))
    labels = columns["label"]
    if task == "stsb":
        assert all(isinstance(label, float) and 0 <= label <= 5 for label in labels)
        assert min(labels) < 0.5 < 2 < sum(labels) / size < 3 < 4.5 < max(labels)
    else:
        assert all(type(label) is int for label in labels)
        share = {label: labels.count(label) / size for label in sorted(set(labels))}
        assert list(share) == list(range(3 if task == "mnli" else 2))
        assert min(share.values()) >= 0.3
        assert max(share.values()) <= 0.7


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_texts_are_short_sentences_of_ascii(task, split):
    for row in rows(task, split):
        for text in row:
            assert re.fullmatch(r"[A-Z][A-Za-z ,:]*[a-zA-Z][.?!]", text), text
            assert "  " not in text
            assert len(text.split()) <= 24
        assert len(words(row)) <= 40


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_no_row_is_repeated_within_a_split(task, split):
    assert len(set(rows(task, split))) == SIZES[task][split]


def test_every_ood_set_has_a_name():
    assert set(OOD_NAMES) == set(TASKS)


@pytest.mark.parametrize(
    ("task", "split", "problem"),
    [
        ("wnli", "train", "task='wnli' is not in glue_mini; use one of cola, sst2"),
        ("cola", "test", "split='test' is not a split of cola; use one of train, validation, ood"),
        ("mnli", "validation", "split='validation' is not a split of mnli; .*validation_matched"),
    ],
)
def test_an_unknown_task_or_split_is_named_with_what_is_allowed(task, split, problem):
    with pytest.raises(ValueError, match=problem):
        generate(task, split)


# The same everywhere


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_text_has_not_changed_without_a_new_version(task, split):
    """If the change is wanted, raise VERSION and replace the fingerprints."""
    assert fingerprint(data(task, split)) == GOLDEN[f"{VERSION}/{task}/{split}"]


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_the_same_and_another_seed_gives_other_text(task):
    assert generate(task, "train") == data(task, "train")
    assert generate(task, "train", seed=1) != data(task, "train")


def test_documents_do_not_depend_on_the_process():
    code = (
        "import hashlib, json, sys\n"
        "from moe_runner.tasks.mini import corpus, glue, grammar\n"
        "documents = list(corpus.documents(count=50, seed=7))\n"
        "print(hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:16])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code]
    env = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "3"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    assert printed.strip() == fingerprint(list(corpus.documents(count=50, seed=7)))


# Neither trivial nor hopeless


@pytest.mark.parametrize("task", TASKS)
def test_majority_is_below_bag_of_words_is_below_the_ceiling(task):
    assert baselines.majority_score(task) + 0.03 < baselines.bag_of_words_score(task) < 0.95


# What train, validation and out of domain have in common


@pytest.mark.parametrize("task", TASKS)
def test_no_sentence_of_any_training_split_is_in_an_evaluation_split(task):
    trained = {text for other in TASKS for text in texts(other, "train")}
    for split in SIZES[task]:
        if split != "train":
            assert trained.isdisjoint(texts(task, split))


@pytest.mark.parametrize("task", TASKS)
def test_words_of_validation_are_seen_in_training(task):
    split = "validation_matched" if task == "mnli" else "validation"
    seen, met = set(words(texts(task, "train"))), set(words(texts(task, split)))
    assert len(met & seen) >= 0.95 * len(met)


@pytest.mark.parametrize("task", ["sst2", "qqp", "qnli", "mrpc", "mnli"])
def test_ood_has_many_words_that_training_has_not(task):
    seen, met = set(words(texts(task, "train"))), set(words(texts(task, "ood")))
    assert len(met - seen) >= 0.15 * len(met)


def test_mnli_mismatched_is_about_other_things():
    seen = set(words(texts("mnli", "train")))
    met = set(words(texts("mnli", "validation_mismatched")))
    assert len(met - seen) >= 0.15 * len(met)


def test_some_polar_words_of_sst2_are_only_out_of_domain():
    polar = set(lexicon.MEAL_POSITIVE_ADJECTIVES + lexicon.PHONE_NEGATIVE_ADJECTIVES)
    seen, met = set(words(texts("sst2", "train"))), set(words(texts("sst2", "ood")))
    assert polar & met - seen
    assert polar & met & seen


def test_constructions_of_cola_are_different_out_of_domain():
    marks = r"^(It was|There|Both|Either|Neither)|\b(than|is (said|believed|reported) to have)\b"
    assert not any(re.search(marks, text) for text in texts("cola", "train"))
    assert sum(bool(re.search(marks, text)) for text in texts("cola", "ood")) >= 150
    assert not set(constructions.PHENOMENA) & set(constructions.OTHER_PHENOMENA)


def test_overlap_traps_of_rte_use_the_words_of_the_premise_for_both_labels():
    data_ood = data("rte", "ood")
    shares = {0: [], 1: []}
    for premise, hypothesis, label in zip(
        data_ood["sentence1"], data_ood["sentence2"], data_ood["label"], strict=True
    ):
        met = words([hypothesis])
        shares[label].append(sum(word in words([premise]) for word in met) / len(met))
    for values in shares.values():
        assert sum(values) / len(values) >= 0.85


# The pretraining text


def test_documents_are_short_and_without_evaluation_sentences(documents):
    held_out = {text for task, split in EVALUATION_SPLITS for text in texts(task, split)}
    assert all(2 <= len(document) <= 6 for document in documents)
    lines = [text for document in documents for text in document]
    assert held_out.isdisjoint(lines)
    assert all(len(line.split()) <= 32 for line in lines)


def test_evaluation_sentences_are_excluded_whatever_the_seed():
    for task, split in EVALUATION_SPLITS:
        assert all(grammar.is_held_out(text) for text in texts(task, split))
    lines = [text for document in corpus.documents(count=500, seed=11) for text in document]
    assert not any(grammar.is_held_out(line) for line in lines)


def test_documents_use_the_words_of_every_task(documents):
    known = set(words(line for document in documents for line in document))
    met = {word for task, split in SPLITS for word in words(texts(task, split))}
    # violations of cola have forms that no well-formed sentence has: "*buyed", "*is trusting"
    unknown = {word for word in met - known if not word.endswith(("ed", "ing", "s"))}
    assert unknown <= {"itself", "these", "more", "most"}
    assert len(known) <= 1300


# The grammar


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ("carry", "carry carries carried carried carrying"),
        ("drop", "drop drops dropped dropped dropping"),
        ("slice", "slice slices sliced sliced slicing"),
        ("write wrote written", "write writes wrote written writing"),
        ("shut shut shut", "shut shuts shut shut shutting"),
    ],
)
def test_verbs_are_conjugated(forms, expected):
    verb = lexicon.conjugate(forms)
    assert [verb.base, verb.third, verb.past, verb.participle, verb.ing] == expected.split()


def test_an_event_is_put_into_words():
    kitchen = lexicon.SCENES[0]
    event = grammar.Event(
        agent=grammar.NounPhrase(kitchen.people[0]),
        verb=grammar.verbs_for("vegetable")[0],
        patient=grammar.NounPhrase(grammar.noun_of("onion"), "a", "old", plural=False),
        scene=kitchen,
        place="in the kitchen",
        tense="past",
    )
    assert grammar.active(event) == "the chef cooked an old onion in the kitchen"
    assert grammar.passive(event) == "an old onion was cooked by the chef in the kitchen"
    assert grammar.cleft(event) == "it was the chef who cooked an old onion in the kitchen"
    assert grammar.yes_no_question(event) == "did the chef cook an old onion in the kitchen"
    assert grammar.wh_question(event, "place") == "where did the chef cook an old onion"
