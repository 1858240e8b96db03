"""The task: a suite, which of its members to run, and where their data come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import ClassVar, Literal, Self

from moe_runner.metrics import METRICS, TEXTS
from moe_runner.options.errors import join, not_an_option
from moe_runner.options.fields import Count, Fraction, Number, Share, later, runtime
from moe_runner.options.method import Method
from moe_runner.options.model import Model, families_with_options
from moe_runner.options.training import Recipe, Trainer
from moe_runner.registry import FAMILIES

FormName = Literal[  # how a backbone meets a task, see training/forms
    "classification", "text_to_text", "language_modelling", "instruct", "domain_generalisation"
]
BLOCK_SIZE = 1024  # tokens; HyperMoE's code
IMAGES = "images"  # the member of own images of which no domain is held out
RESERVED = ("label", "references", "group")  # columns of a data set, beside the texts
LEAST_TOKENS = 6  # of two texts: four special ones (RoBERTa), one of each
GENERATED = "_mini"  # so the names of generated suites and members end
LABEL_TOKENS = 8  # most tokens of a generated label
NAME_TOKENS = 32  # and of a text where the options have no number: ReCoRD's entities
TINY_PATCH = 8  # pixels a side of a patch of vit_tiny


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How the form text_to_text reads and answers; lengths in tokens.

    Args:
        source_length: most of what is read.
        target_length: most of an answer in training.
        search: how answers are generated, in the words of transformers' GenerationConfig.
    """

    source_length: int | None
    target_length: int
    search: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A suite, which of its members to run, and where their data come from.

    What all suites share; each kind of suite has a dataclass of its own with the rest, which says
    what the runner asks of it: `tokens`, for the form text_to_text `answers`, what else differs.
    """

    suite: str
    members: tuple[str, ...]
    data_dir: str | None = runtime(None)  # a folder per task; the content of the files is in the id
    hub_id: str | None = runtime(None)
    revision: str = runtime("main")
    ood: tuple[str, ...] = runtime(())  # names of out-of-domain sets; "all": the paper's partners
    ood_dir: str | None = runtime(None)
    limit: Count | None = None  # training examples
    eval_limit: Count | None = None  # examples of every evaluation set
    data_seed: Number = 0  # of generated data and of train_fraction
    skip_missing: bool = runtime(False)

    reads: ClassVar[str] = ""  # what a backbone has to do, for messages
    forms: ClassVar[tuple[str, ...]] = ()  # of which a backbone has to do one
    own: ClassVar[tuple[str, ...]] = ()  # the members that are any data of a user's

    def problems(self, model: Model) -> list[str]:
        """Check the options against the backbone that is to read the task.

        Args:
            model: the backbone's options.

        Returns:
            One line per problem.
        """
        problems = []
        if not self.members:
            problems.append("task.members=[] is empty; name at least one task")
        if not set(self.forms) & set(FAMILIES[model.family].forms):
            able = families_with_options(self.forms)
            return [
                *problems,
                f"model={model.name} is of the family {model.family} and task={self.suite} "
                f"{self.reads}; use a model of the family {join(able)}",
            ]
        return problems + self.value_problems(model)

    def value_problems(self, model: Model) -> list[str]:
        """Check values against the backbone's sizes; a kind of task with such values says more."""
        return []

    def method_problems(self, method: Method) -> list[str]:
        """Check how the method goes with the task."""
        return []

    def trainer_problems(self, trainer: Trainer) -> list[str]:
        """Check how batches are put together against what they are made of."""
        return []

    def resolved(self, model: Model, recipe: Recipe, image_size: Callable[[], int]) -> Self:
        """Put values where null means one that follows from the rest.

        Args:
            model: the backbone's options.
            recipe: of the member task in its form.
            image_size: reads how many pixels a side the images of the backbone have.
        """
        return self

    @property
    def own_data(self) -> bool:
        """Whether the one member task is any data of a user's: two may have one title by chance."""
        return bool(set(self.members) & set(self.own))

    @property
    def has_folders(self) -> bool:
        """Whether a member has a folder in `paths.data` beside, not within, that of its suite."""
        return True

    @property
    def title(self) -> str:
        """What people call the one member task: its name, or that of a user's own data."""
        (name,) = self.members
        return own_title(self) if self.own_data else name

    @property
    def share(self) -> float:
        """Which share of the training examples is used."""
        return 1.0

    @abstractmethod
    def tokens(self, model: Model) -> int:
        """Give the most tokens of an example; the options are resolved."""

    def answers(self, free_text: bool) -> Answers:
        """Say how the form text_to_text reads and answers; the options are resolved.

        Args:
            free_text: an answer is a text, not a class or a score.

        Raises:
            TypeError: if this kind of task is not answered by a text.
        """
        raise TypeError(f"{type(self).__name__} is not answered by a text")


def own_title(task: Task) -> str:
    """Name a user's own data: by the file or folder, or the data set on the Hub."""
    if task.data_dir is not None:
        path = Path(task.data_dir).expanduser().resolve()
        return path.name.partition(".")[0] if path.suffix else path.name
    return (task.hub_id or task.suite).rpartition("/")[2]


def metric_problems(task: Task, chosen: Iterable[str], known: Iterable[str]) -> list[str]:
    """Check names of metrics."""
    names, of = list(known), f" of task={task.suite}"
    return [
        not_an_option(f"task.metrics=[{name}]", of, name, names)
        for name in chosen
        if name not in names
    ]


def template_problems(template: str | None, columns: Sequence[str]) -> list[str]:
    """Check that a template names columns that are read, and nothing else."""
    if template is None:
        return []
    given = f"task.template={template}"
    try:
        parsed = [part for part in Formatter().parse(template) if part[1] is not None]
        named = [str(name) for _, name, _, _ in parsed]
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ValueError("a format behind a name")
    except ValueError as error:
        return [f"{given} is no template ({error}); write {{column}}, and {{{{ for a brace"]
    if wrong := [name for name in named if name not in columns]:
        return [f"{given} has {{{wrong[0]}}}, which task.source=[{','.join(columns)}] does not"]
    return [] if named else [f"{given} has no column; write for example {{{columns[0]}}}"]


def position_problems(key: str, length: int | None, model: Model) -> list[str]:
    """Check a number of tokens against the positions of a backbone; None: nothing to check."""
    if length is None or not model.max_positions or length <= model.max_positions:
        return []
    return [
        f"{key}={length} is more than the {model.max_positions} positions of model={model.name}; "
        f"use at most {model.max_positions}"
    ]


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Texts, or pairs of texts, with a class or a score: GLUE, SuperGLUE."""

    max_length: Count | None = None  # tokens; None: 128, or the form's own number (see Recipe)
    train_fraction: Share = later(1.0)  # of the training examples, drawn with data_seed

    reads: ClassVar[str] = "is text classification"
    forms: ClassVar[tuple[str, ...]] = ("classification", "text_to_text")

    @property
    def has_folders(self) -> bool:
        """See `Task`."""
        return self.suite not in ("glue", "superglue")

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        if self.max_length is not None and self.max_length < LEAST_TOKENS:
            return [
                f"task.max_length={self.max_length} leaves no token of a text beside the special "
                f"ones; use {LEAST_TOKENS} or more"
            ]
        return position_problems("task.max_length", self.max_length, model)

    def resolved(self, model: Model, recipe: Recipe, image_size: Callable[[], int]) -> Self:
        """See `Task`: the recipe has the length."""
        if self.max_length is not None:
            return self
        return replace(self, max_length=recipe.max_length)

    @property
    def share(self) -> float:
        """See `Task`."""
        return self.train_fraction

    def tokens(self, model: Model) -> int:
        """See `Task`."""
        assert self.max_length is not None
        return self.max_length

    def answers(self, free_text: bool) -> Answers:
        """See `Task`: labels and names are written greedily."""
        return Answers(
            source_length=self.max_length,
            target_length=NAME_TOKENS,
            search={"max_new_tokens": NAME_TOKENS if free_text else LABEL_TOKENS},
        )


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(TextTask):
    """A user's own texts, with a class or a score in a column."""

    config: str | None = runtime(None)  # of the data set on the Hub; None: its default
    text: tuple[str, ...] = ("text",)  # one or two columns
    label: str = "label"
    validation_fraction: Fraction = 0.1  # of the training rows, where there is no validation set
    metrics: tuple[str, ...] = ()  # (): those that suit the labels

    own: ClassVar[tuple[str, ...]] = ("classification",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        problems = super().value_problems(model)
        given = f"task.text=[{','.join(self.text)}]"
        if not 1 <= len(self.text) <= 2:
            problems.append(f"{given} has {len(self.text)} columns; give one or two")
        if self.label in self.text:
            problems.append(f"{given} has the column of task.label={self.label}; leave it out")
        if len(set(self.text)) < len(self.text):
            problems.append(f"{given} has a column twice; leave one out")
        if self.validation_fraction == 0:
            problems.append("task.validation_fraction=0.0 leaves nothing to select by; use 0.1")
        return problems + metric_problems(self, self.metrics, METRICS)


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """Texts that are answered by a text: summarisation, question answering."""

    max_length: Count = 1024  # tokens of the source
    target_length: Count = 128  # tokens of the target in training
    answer_length: Count = 60  # most tokens that are generated
    min_length: Number = 0  # fewest
    beams: Count = 1
    no_repeat_ngram: Number = 0  # 3: no three tokens occur twice in an answer

    reads: ClassVar[str] = "generates text from text"
    forms: ClassVar[tuple[str, ...]] = ("text_to_text",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        problems = position_problems("task.max_length", self.max_length, model)
        if self.min_length > self.answer_length:
            problems.append(
                f"task.min_length={self.min_length} is more than "
                f"task.answer_length={self.answer_length}; use at most that"
            )
        return problems

    def tokens(self, model: Model) -> int:
        """See `Task`."""
        return self.max_length + self.target_length

    def answers(self, free_text: bool) -> Answers:
        """See `Task`."""
        return Answers(
            source_length=self.max_length,
            target_length=self.target_length,
            search={
                "max_new_tokens": self.answer_length,
                "min_new_tokens": self.min_length,
                "num_beams": self.beams,
                "no_repeat_ngram_size": self.no_repeat_ngram,
            },
        )


@dataclass(frozen=True, kw_only=True)
class OwnGenerationTask(GenerationTask):
    """A user's own texts that are answered by a text."""

    config: str | None = runtime(None)  # of the data set on the Hub; None: its default
    source: tuple[str, ...] = ("source",)  # columns that are read
    target: str = "target"  # the column of the answer, or of all right answers
    template: str | None = None  # "summarize: {article}"; None: "article: ..."
    validation_fraction: Fraction = 0.1  # of the training rows, where there is no validation set
    metrics: tuple[str, ...] = ("rouge1", "rouge2", "rougeL")

    own: ClassVar[tuple[str, ...]] = ("generation",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        problems = super().value_problems(model)
        given = f"task.source=[{','.join(self.source)}]"
        if not self.source:
            problems.append(f"{given} names no column; give one or more")
        if self.target in self.source:
            problems.append(f"{given} has the column of task.target={self.target}; leave it out")
        if self.validation_fraction == 0:
            problems.append("task.validation_fraction=0.0 leaves nothing to select by; use 0.1")
        if not self.metrics:
            problems.append(f"task.metrics=[] is empty; use some of {join(list(TEXTS))}")
        problems += metric_problems(self, self.metrics, TEXTS)
        return problems + template_problems(self.template, self.source)


@dataclass(frozen=True, kw_only=True)
class LanguageModellingTask(Task):
    """Running text, packed into blocks."""

    block_size: Count | None = None  # tokens; None: 1024, or the model's positions if fewer
    text: tuple[str, ...] = later(("text",))  # the column, where a text is a table

    reads: ClassVar[str] = "predicts the next token"
    forms: ClassVar[tuple[str, ...]] = ("language_modelling",)
    own: ClassVar[tuple[str, ...]] = ("text",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        problems = position_problems("task.block_size", self.block_size, model)
        if self.block_size == 1:
            problems.append("task.block_size=1 leaves no token to predict; use 2 or more")
        if len(self.text) != 1:
            problems.append(f"task.text=[{','.join(self.text)}] is not one column; give one")
        return problems

    def resolved(self, model: Model, recipe: Recipe, image_size: Callable[[], int]) -> Self:
        """See `Task`: HyperMoE's block, if it fits."""
        if self.block_size is not None:
            return self
        return replace(self, block_size=min(BLOCK_SIZE, model.max_positions or BLOCK_SIZE))

    def tokens(self, model: Model) -> int:
        """See `Task`."""
        assert self.block_size is not None
        return self.block_size


@dataclass(frozen=True, kw_only=True)
class InstructTask(Task):
    """Instructions with responses; what is learned is the response."""

    max_length: Count = 512  # tokens of prompt and response
    template: Literal["alpaca", "plain", "chat"] = "alpaca"  # see tasks/instructions.py
    validation_size: Count = 100  # records that are held out
    shots: Number = 5  # solved examples before a question of MMLU
    config: str | None = runtime(None)  # of the data set on the Hub; None: its default
    columns: tuple[str, ...] = later(())  # instruction, (input,) output; or one of conversations

    reads: ClassVar[str] = "predicts the next token"
    forms: ClassVar[tuple[str, ...]] = ("instruct",)
    own: ClassVar[tuple[str, ...]] = ("instruct",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        problems = position_problems("task.max_length", self.max_length, model)
        if len(self.columns) > 3:
            problems.append(
                f"task.columns=[{','.join(self.columns)}] has {len(self.columns)} names; give "
                "[instruction,output], [instruction,input,output] or [messages]"
            )
        return problems

    def tokens(self, model: Model) -> int:
        """See `Task`."""
        return self.max_length


@dataclass(frozen=True, kw_only=True)
class DomainBedTask(Task):
    """Images from several domains, some of which are held out: DomainBed."""

    pairs: bool = runtime(False)  # also the members that hold out pairs of the members' domains
    image_size: Count | None = None  # pixels a side; None: those that the backbone was trained on
    augment: bool = True  # DomainBed's augmentations
    holdout: Fraction = 0.2  # of each domain, for validation
    drop_path: Fraction = 0.1  # share of the blocks' outputs that are dropped in the last layer
    skip_corrupt: bool = runtime(False)  # leave out files that are no images, and count them

    reads: ClassVar[str] = "classifies images"
    forms: ClassVar[tuple[str, ...]] = ("domain_generalisation",)

    def value_problems(self, model: Model) -> list[str]:
        """See `Task.value_problems`."""
        if self.holdout == 0:
            return ["task.holdout=0.0 leaves nothing to select by; use for example 0.2"]
        return []

    def method_problems(self, method: Method) -> list[str]:
        """Check that the checkpoints, which select the model, have its final form."""
        if method.converted_at == "both":
            return []
        return [
            f"method.convert_at={method.converted_at} does not go with task={self.suite}, whose "
            "selection rules read every checkpoint as it is trained; use method.convert_at=both"
        ]

    def trainer_problems(self, trainer: Trainer) -> list[str]:
        """See `Task.trainer_problems`."""
        if not trainer.length_grouping:
            return []
        return [
            f"trainer.length_grouping=true does not go with task={self.suite}, whose images are of "
            "one length; use trainer.length_grouping=false"
        ]

    def resolved(self, model: Model, recipe: Recipe, image_size: Callable[[], int]) -> Self:
        """See `Task`: the size that the backbone was trained on."""
        return self if self.image_size is not None else replace(self, image_size=image_size())

    def tokens(self, model: Model) -> int:
        """See `Task`: patches and [CLS]."""
        assert self.image_size is not None
        patch = FAMILIES[model.family].patch_size
        return (self.image_size // (TINY_PATCH if model.bundled else patch)) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class ImageFoldersTask(DomainBedTask):
    """A user's own images, in folders named after domains and classes."""

    @property
    def own_data(self) -> bool:
        """See `Task`."""
        return True

    @property
    def title(self) -> str:
        """See `Task`: the data's name, and the domain that is held out."""
        (name,) = self.members
        return own_title(self) if name == IMAGES else f"{own_title(self)}/{name}"
