"""The suite `language_modelling`: running text, scored by its perplexity.

`wikitext2` and `wikitext103` (raw) come from the Hugging Face Hub or from files; `text` is any text
of the user's; `wikitext_mini` is generated from a seed. A row is a line.

Source: WikiText, arXiv:1609.07843; recipe as HyperMoE's code (PROTOCOL.md II.2).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import LanguageModellingTask, Task
from moe_runner.options.training import Recipe
from moe_runner.runs.identity import content_hash
from moe_runner.tasks.mini.corpus import documents
from moe_runner.tasks.own_files import with_columns
from moe_runner.tasks.places import (
    Source,
    check,
    chosen_ood,
    find_parquet,
    hub_source,
    hub_split,
    ood_part,
    optional,
)
from moe_runner.tasks.records import SUFFIXES, is_clutter, kind_of, read_column
from moe_runner.tasks.specs import About, OODSpec, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.tables import ROWS, plain_column, read_tables

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "Salesforce/wikitext"
CONFIGS = {"wikitext2": "wikitext-2-raw-v1", "wikitext103": "wikitext-103-raw-v1"}
SPLITS = ("train", "validation", "test")
SHORT = {"train": "train", "validation": "valid", "test": "test"}  # as in wiki.valid.raw
COLUMN = "text"
WHOLE = (0.0, 1.0)
BY_ROWS = "rows, divided 90/5/5"  # a file of rows: it was one text, or the whole in every split
BY_LINES = "rows, each a line"  # of parquet: they were glued together
PARTS = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}  # of one file's lines
RECIPE = Recipe(
    epochs={"full": 20, "lora": 20, "lora_block": 20},
    learning_rate=1e-5,
    batch_size=4,
    eval_batch_size=4,
)
LICENCE = "CC BY-SA 3.0"

OWN = "text"
MINI = "wikitext_mini"
MINI_VERSION = 1  # raised when the same seed gives another text
MINI_DOCUMENTS = {"train": 1200, "validation": 300, "test": 300, "dialogue": 300}
MINI_TOKENS = 39.0  # of a document, by the tokenizers of the bundled backbones
MINI_KINDS = ("account", "attempt", "circumstances", "knowledge")
DIALOGUE_KINDS = ("conversation", "web_questions")
MINI_SEED = 20_000_000  # the bundled backbones were pretrained on documents of smaller seeds


def _task(name: str, about: About) -> TaskSpec:
    return TaskSpec(
        name=name,
        form="language_modelling",
        columns=(COLUMN,),
        metrics=("perplexity",),
        validation=("validation", "test"),
        recipe=RECIPE,
        about=about,
    )


WIKITEXT2_ROWS = {"validation": 3760, "test": 4358}  # lines
TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _task("wikitext2", About(source=HUB_ID, licence=LICENCE, rows=WIKITEXT2_ROWS)),
        _task("wikitext103", About(source=HUB_ID, licence=LICENCE)),
        _task(OWN, About(source="task.data_dir", licence="the text's own")),
        replace(
            _task(
                MINI,
                About(
                    source="generated",
                    licence="MIT",
                    rows=MINI_DOCUMENTS,
                    row_tokens=MINI_TOKENS,
                ),
            ),
            ood=("dialogue",),
            recipe=replace(
                RECIPE, epochs={"full": 2, "lora": 4, "lora_block": 4}, learning_rate=5e-5
            ),
        ),
    )
}


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on, beside the texts in `task.ood_dir`."""
    return TASKS[task_name].ood


def mini_text(split: str, seed: int) -> list[str]:
    """Generate a text: a document a line, of the grammar that the tiny backbones were trained on.

    Args:
        split: a key of `MINI_DOCUMENTS`; `dialogue` has other kinds of documents.
        seed: another seed gives another text.
    """
    kinds = DIALOGUE_KINDS if split == "dialogue" else MINI_KINDS
    number = MINI_SEED + len(MINI_DOCUMENTS) * seed + list(MINI_DOCUMENTS).index(split)
    made = documents(count=MINI_DOCUMENTS[split], seed=number, kinds=kinds)
    return [" ".join(sentences) + "\n" for sentences in made]


def _text_source(options: Task, name: str, split: str) -> Source:
    """Say where a split is: in `task.data_dir` if that is given, else on the Hub.

    In the folder, or its subfolder of the task's name, are `<split>.txt`, `valid.txt` for
    `validation.txt`, or WikiText's own `wiki.<split>.raw`; or parquet files in the Hub's layout.
    Of a user's own text, the folder may hold tables instead, or one file only.
    """
    config = CONFIGS.get(name, name)
    if options.data_dir is None:
        if name not in CONFIGS:
            return Source(
                problem=f"task={name} needs task.data_dir=<text file>, or a folder with train.txt "
                "and validation.txt"
            )
        place = hub_split(options, HUB_ID, config, split)
        return hub_source(place, f"use task.data_dir=<folder or text file>, or task={MINI}")
    folder = Path(options.data_dir).expanduser()
    if folder.is_file():
        return Source(files=(folder,), reading=BY_ROWS if kind_of(folder) else "")
    rows = [] if name in CONFIGS else [f"{split}{suffix}" for suffix in SUFFIXES]
    texts = [f"{split}.txt", f"{SHORT[split]}.txt", f"wiki.{SHORT[split]}.raw"]
    names = dict.fromkeys([*texts, *rows])
    for within in (folder, folder / name, folder / config):
        for file in names:
            if (within / file).is_file():
                return Source(files=(within / file,))
    if files := find_parquet(folder / config, split):
        copied = hub_split(options, HUB_ID, config, split) if name in CONFIGS else None
        return Source(files=files, original=copied)
    if name == OWN and (alone := _only_file(folder)) is not None:
        return Source(files=(alone,), reading=BY_ROWS if kind_of(alone) else "")
    state = "lacks a split" if folder.is_dir() else "is neither a folder nor a text file"
    return Source(
        problem=f"task.data_dir={options.data_dir} {state}: looked for {', '.join(names)} and "
        f"{config}/{split}-*-of-*.parquet (all parts); put it there, or use task={MINI}"
    )


def _only_file(folder: Path) -> Path | None:
    """Find the one text or table in a folder, unless its name says that it is no training text."""
    files = list(filter(_is_text, folder.glob("*")))
    held_out = {*SHORT, *SHORT.values()} - {"train"}
    alone = len(files) == 1 and not held_out & set(files[0].name.split("."))
    return files[0] if alone else None


def _ood_texts(options: Task) -> dict[str, Path]:
    """List the texts in `task.ood_dir`: set -> file."""
    if options.ood_dir is None:
        return {}
    folder = Path(options.ood_dir).expanduser()
    files = {f.name.partition(".")[0]: f for f in sorted(folder.glob("*")) if _is_text(f)}
    return files | {file.parent.name: file for file in sorted(folder.glob("*/test.txt"))}


def _is_text(file: Path) -> bool:
    """Tell whether a file is a text, or a table of texts."""
    known = file.name.endswith((".txt", ".txt.gz")) or kind_of(file)
    return bool(known) and file.is_file() and not is_clutter(file.name)


def _read(
    source: Source, part: tuple[float, float], column: str, wikitext: bool, cache: Path | None
) -> Dataset | None:
    """Read the lines of one split.

    Args:
        source: where it is.
        part: the lines to take, from and to, as shares of the file.
        column: of texts, if it is a table.
        wikitext: a line of white space is empty, as it is in the Hub's rows.
        cache: `paths.cache`.
    """
    if not source.available:
        return None
    if source.hub is not None or (len(source.files) > 1 or part == WHOLE) and _is_parquet(source):
        data = read_tables(
            source,
            partial(_text_column, column, wikitext),
            _features(),
            {"column": column} if wikitext else {"column": column, "lines": True},
            cache,
        )
    else:
        (file,) = source.files
        key: dict[str, Any] = {"part": part, "wikitext": wikitext}
        if cache is not None:
            key["lines of"] = content_hash([file], cache / "hashes.json")
        if kind_of(file):
            key["column"] = column
            lines = partial(_rows, file, column, part, wikitext)
        else:
            lines = partial(_lines, file, part, wikitext)
        data = _dataset(lines, key, cache)
    if not len(data):
        raise ValueError(f"{source.origin} has no line of text; expected at least one")
    if not any(text.strip() for text in data[COLUMN]):
        raise ValueError(f"{source.origin} has blank lines only; expected text")
    return data


def _is_parquet(source: Source) -> bool:
    return source.files[0].suffix == ".parquet"


def _in_lines(source: Source) -> Source:
    """Tell of parquet whose rows are lines: an earlier version read it otherwise."""
    return replace(source, reading=source.reading or BY_LINES) if _is_parquet(source) else source


def _rows(file: Path, column: str, part: tuple[float, float], wikitext: bool) -> Iterator[str]:
    """Yield the column of text of a table; see `_lines`."""
    start, stop = _range(file, sum(1 for _ in read_column(file, column)), part)
    for text in islice(read_column(file, column), start, stop):
        yield "" if wikitext and not text.strip() else text if text.endswith("\n") else f"{text}\n"


def _range(file: Path, count: int, part: tuple[float, float]) -> tuple[int, int]:
    """Say which lines of a file are a part of it.

    Raises:
        ValueError: if there are too few.
    """
    start, stop = round(part[0] * count), round(part[1] * count)
    if start == stop and part != WHOLE:
        raise ValueError(f"{file} has {count} lines, too few to split; use 20 or more")
    return start, stop


def _first(data: Dataset | None, limit: int | None) -> Dataset | None:
    """Keep the first lines, since a text is read in its order."""
    if data is None or limit is None or limit >= len(data):
        return data
    return data.select(range(limit))


def _features() -> Any:
    from datasets import Features, Value

    return Features({COLUMN: Value("string")})


def _dataset(
    lines: Callable[[], Iterable[str]], key: dict[str, Any], cache: Path | None
) -> Dataset:
    """Put lines into a data set, some at a time."""
    import pyarrow as pa

    from moe_runner.tasks.cache import cached_batches

    features = _features()

    def tables() -> Iterator[Any]:
        remaining = iter(lines())
        while rows := list(islice(remaining, ROWS)):
            yield pa.table({COLUMN: rows}).cast(features.arrow_schema)

    return cached_batches(tables, features, key, cache)


def _text_column(column: str, wikitext: bool, table: Any, origin: str) -> Any:
    """Take the column of text, whose rows end lines; a ValueError says if there is none.

    Those of WikiText have their line feeds, but for the empty ones.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in table.column_names:
        here = ", ".join(table.column_names)
        raise ValueError(f"{origin} has the columns {here}; expected {column}")
    texts = plain_column(table, column, origin)
    if texts.null_count or not pa.types.is_string(texts.type):
        raise ValueError(f"{origin} has rows in the column {column} that are no text")
    if not wikitext:
        lines = pc.binary_join_element_wise(texts, "\n", "")
        texts = pc.if_else(pc.ends_with(texts, "\n"), texts, lines)
    return pa.table({COLUMN: texts}).cast(_features().arrow_schema)


def _lines(file: Path, part: tuple[float, float], wikitext: bool) -> Iterator[str]:
    """Yield lines of a text file with their ends, which become one line feed.

    Raises:
        ValueError: if a line is not UTF-8; gives its number.
    """
    opened = partial(gzip.open if file.suffix == ".gz" else open, file, "rb")
    with opened() as stream:
        count = sum(1 for _ in stream)
    start, stop = _range(file, count, part)
    with opened() as stream:
        if _is_object(stream.readline()):
            raise ValueError(
                f"{file} holds JSON lines, not running text; name it {file.stem}.jsonl, and its "
                f"column {COLUMN} is read"
            )
    with opened() as stream:
        for number, line in enumerate(islice(stream, start, stop), start=start + 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}:{number} is not UTF-8 (byte {error.start + 1} of the line: "
                    f"{error.reason}); save the file as UTF-8"
                ) from error
            if text.endswith("\r\n"):
                text = f"{text[:-2]}\n"
            yield "" if wikitext and not text.strip() else text


def _is_object(line: bytes) -> bool:
    """Tell whether a line is an object of JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class LanguageModelling(Suite[LanguageModellingTask]):
    """Texts whose next token is predicted."""

    options = LanguageModellingTask
    specs = TASKS

    def sources(self, options: LanguageModellingTask, name: str) -> dict[str, Source]:
        """See `Suite`; all but the test split are needed.

        Args:
            options: `data_dir` is a folder (see `_text_source`) or one file, whose first 90% of
                lines or rows are for training, the next 5% validation, the last 5% test. `ood_dir`
                has a `<set>.txt` or table, or `<set>/test.txt` for each out-of-domain set.
            name: the member task.
        """
        if name == MINI:
            source = Source(generated=f"{MINI} v{MINI_VERSION} seed {options.data_seed}")
            chosen = chosen_ood(options, name, ood_names, TASKS[name].ood)
            return dict.fromkeys([*SPLITS, *(f"ood/{ood}" for ood in chosen)], source)
        found = {split: _text_source(options, name, split) for split in SPLITS}
        found["test"] = optional(found["test"])
        texts = _ood_texts(options)
        for ood in chosen_ood(options, name, lambda _: tuple(texts), tuple(texts)):
            found[f"ood/{ood}"] = Source(files=(texts[ood],))
        tables = [key for key, source in found.items() if source.files and kind_of(source.files[0])]
        if name == OWN:
            found |= {key: _in_lines(with_columns(found[key], options.text)) for key in tables}
        return found

    def load(
        self, options: LanguageModellingTask, name: str, cache: Path | None = None
    ) -> TaskData:
        """See `Suite`; `limit` and `eval_limit` count lines, and keep the first ones.

        Raises:
            ConfigError: as for every suite.
            ValueError: if a file is not UTF-8 (it names the line), or has no text.
        """
        found = self.sources(options, name)
        check(found)
        data = {}
        for key, source in found.items():
            limit = options.limit if key == "train" else options.eval_limit
            if source.generated:
                split = key.removeprefix("ood/")
                lines = partial(mini_text, split, options.data_seed)
                made_from = {"generated": source.generated, "split": split}
                data[key] = _first(_dataset(lines, made_from, cache), limit)
            else:
                divided = found["train"].files == found["validation"].files != ()
                part = PARTS[key] if divided and key in PARTS else WHOLE
                (column,) = options.text
                data[key] = _first(_read(source, part, column, name in CONFIGS, cache), limit)
        train = data.pop("train")
        assert train is not None  # check() has seen to it
        ood = ood_part(data)
        return TaskData(
            spec=TASKS[name],
            train=train,
            validation={split: data[split] for split in TASKS[name].validation},
            ood=ood,
            ood_specs=dict.fromkeys(ood, OODSpec(columns=(COLUMN,), metrics=("perplexity",))),
        )


SUITE: Suite[LanguageModellingTask] = LanguageModelling()
