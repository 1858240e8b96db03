"""What was seen of a model at work: plain arrays, from which all figures follow. No torch."""

# T tokens, D d_model, E experts, S selections

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_runner.analysis.numbers import Bools, Floats, Ints
from moe_runner.options.errors import show


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens that a layer saw; padding is left out.

    Args:
        example: number of the example that each is in, int64 (T,).
        position: within the example, from 0, int64 (T,).
        identity: id in the vocabulary, int64 (T,); None: patches of a picture.
        label: of the example, int64 (T,); None: there is none, or it is no class.
    """

    example: Ints
    position: Ints
    identity: Ints | None = None
    label: Ints | None = None


@dataclass(frozen=True)
class Layer:
    """What an MoE layer did with some texts.

    Args:
        name: stack and number: "encoder 2".
        tokens: that it saw.
        chosen: selected experts, bool (T, E).
        tied: share of the tokens whose last selected expert scored no better than the next one: the
            choice between them says nothing.
        keys: cosine of every two experts' keys, float (E, E).
        outputs: cosine of their outputs on the tokens, all tokens in one long vector, float (E, E).
        split: the experts are groups of the neurons of one dense network.
        energy: squared length of each expert's activations, float32 (T, E); None if not split.
        random_groups: share of the squared length of the dense activation that the same router
            selects where the neurons are grouped at random; None: not split, or the router has
            weights of its own.
        norms: mean length of the experts' output and of what stands beside it; None: nothing does.
        beside: what that is: "HyperExpert", or "side experts".
        selections: the sets of experts that occur, the most frequent first, bool (S, E); None
            without a HyperExpert.
        selection_tokens: share of the tokens of each, float (S,).
        embeddings: of the selections, float (S, N).
    """

    name: str
    tokens: Tokens
    chosen: Bools
    tied: float
    keys: Floats
    outputs: Floats
    split: bool
    energy: NDArray[np.float32] | None = None
    random_groups: float | None = None
    norms: tuple[float, float] | None = None
    beside: str = ""
    selections: Bools | None = None
    selection_tokens: Floats | None = None
    embeddings: Floats | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.chosen.shape[1]

    @property
    def selected(self) -> int:
        """K."""
        return int(self.chosen[0].sum())


@dataclass(frozen=True)
class Loads:
    """How the experts of a layer were used at each evaluation of a training.

    Args:
        name: of the layer.
        updates: done at each, (N,).
        load: tokens per expert, (N, E).
    """

    name: str
    updates: Ints
    load: Ints


@dataclass(frozen=True)
class Subject:
    """One model at work on its texts.

    Args:
        name: short and unique: of files.
        title: for people.
        sets: by name of the set of texts, what each layer did; the first set is the main one.
        before: the main set on the model before tuning; empty: not known.
        over_training: see `Loads`; empty: not known.
        notes: what a reader must know, one line each.
        vocabulary: texts and classes of the tokens, see `words.Vocabulary`; empty: no texts.
        kinds: class of each token of the vocabulary.
        settings: of the run, beside what the title says; see `Run.settings`.
    """

    name: str
    title: str
    sets: dict[str, list[Layer]]
    before: list[Layer] = field(default_factory=list)
    over_training: list[Loads] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """What each layer did with the main set."""
        return next(iter(self.sets.values()))


def told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Give each subject a name of its own, and a title that says what it differs in.

    Args:
        subjects: two folders may have one name; runs of one title differ in their settings.
    """
    found = []
    names: Counter[str] = Counter()
    for subject in subjects:
        names[subject.name] += 1
        name = subject.name
        if names[name] > 1:
            name = f"{name}-{names[name]}"
        like = [each.settings for each in subjects if each.title == subject.title]
        differing = [
            f"{key.rpartition('.')[2]}={show(value)}"
            for key, value in subject.settings.items()
            if any(other.get(key) != value for other in like)
        ]
        title = " ".join([subject.title, *differing])
        found.append(replace(subject, name=name, title=title))
    return found
