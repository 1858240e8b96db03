"""Files of texts, images and answers that a run cannot use."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from tests.torture.bad.case import Build, Case, both, files

WORDS = ("the film is good", "a bad book", "one more word", "it rains again", "we like it", "no")
ROWS = "\n".join(f"{WORDS[i % 6]} {i},{'yes' if i % 2 else 'no'}" for i in range(24))
GOOD = f"text,label\n{ROWS}\n"
LINES = "".join(
    json.dumps({"source": f"{WORDS[i % 6]} {i}", "target": WORDS[(i + 1) % 6]}) + "\n"
    for i in range(24)
)
CLASSIFY = ("method=emoe", "model=bert_tiny", "task=classification")
GENERATE = ("method=moe", "model=switch_tiny", "task=generation")
LANGUAGE = ("method=emoe", "model=gpt2_tiny", "task=text")
INSTRUCT = ("method=emoe", "model=llama_tiny", "task=instruct", "task.max_length=128")
IMAGES = ("method=emoe", "model=vit_tiny", "task=image_folders")
GLUE = ("method=emoe", "model=bert_tiny", "task=glue/rte", "task.data_dir=HERE/glue")


def cases() -> list[Case]:
    """List the cases."""
    return [*tables(), *folders(), *generation(), *language(), *instructions(), *images(), *glue()]


def table(name: str, content: str | bytes, *says: str, words: tuple[str, ...] = (), code: int = 2):
    """Make a case of one table for classification."""
    return Case(
        f"classification: {name} {' '.join(words)}",
        (*CLASSIFY, f"task.data_dir=HERE/{name.split(' ')[0]}", *words),
        says, code, files({name.split(" ")[0]: content}),
    )  # fmt: skip


def content(name: str, data: str | bytes, *says: str, words: tuple[str, ...] = ()) -> Case:
    """Make a case that is found out when the table is read: the run fails."""
    return table(name, data, *says, words=words, code=1)


def parquet(**columns: object) -> bytes:
    """Write a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def tables() -> list[Case]:
    """Spoil one table."""
    jsonl = "".join(
        json.dumps({"text": f"{WORDS[i % 6]} {i}", "label": i % 2}) + "\n" for i in range(24)
    )
    half = "".join(json.dumps({"text": f"\ud800 {i}", "label": i % 2}) + "\n" for i in range(24))
    lists = [[1, 2]] * 24
    return [
        table("a.csv empty", "", "a.csv"),
        table("a.csv one newline", "\n", "a.csv"),
        table("a.csv only a header", "text,label\n", "a.csv"),
        content("a.csv one row", "text,label\ngood,yes\n", "every label is yes"),
        content("a.csv one class", GOOD.replace(",no", ",yes"), "yes"),
        table("a.csv no text column", GOOD.replace("text,", "body,"), "text", "body"),
        table("a.csv no label column", GOOD.replace(",label", ",stars"), "label", "stars"),
        table("a.csv no such column", GOOD, "nope", words=("task.text=[nope]",)),
        table("a.csv no such label", GOOD, "nope", words=("task.label=nope",)),
        table("a.csv text as label", GOOD, "text", words=("task.label=text",)),
        table("a.csv three columns", GOOD, "task.text", words=("task.text=[text,text2,text3]",)),
        table("a.csv double column", GOOD.replace("text,label", "text,text"), "text"),
        content("a.csv blank texts", "text,label\n" + " ,yes\n ,no\n" * 12, "no row with a text"),
        table("a.csv a label is missing", GOOD + "a text without one,\n",
              "1 rows with no label are left out", code=0),
        content("a.csv too many fields", GOOD + "a,b,c\n", "a.csv"),
        content("a.csv an open quote", GOOD + '"never closed,yes\n', "a.csv"),
        table("a.csv latin 1", GOOD.encode() + "caf\xe9,yes\n".encode("latin-1"), "UTF-8"),
        table("a.csv zero bytes", b"\0" * 400, "a.csv"),
        table("a.csv a picture", b"\x89PNG\r\n\x1a\n" + b"\xff" * 200, "a.csv"),
        table("a.csv a parquet file", parquet(text=["a"] * 24, label=[0, 1] * 12), "a.csv"),
        content("a.csv every row its own class", "text,label\n" + "".join(
            f"word {i},class {i}\n" for i in range(200)), "label"),
        table("a.tsv commas", GOOD, "text"),
        table("a.xlsx unknown kind", b"PK\3\4", ".xlsx"),
        table("a unknown kind", GOOD, "csv"),
        table("a.pkl a pickle", b"\x80\4N.", ".pkl"),
        table("a.csv.gz no gzip", GOOD, "a.csv.gz"),
        table("a.csv.gz cut", gzip.compress(GOOD.encode())[:60], "a.csv.gz"),
        table("a.csv.bz2 other compression", b"BZh9", "a.csv.bz2"),
        table("a.jsonl empty", "", "a.jsonl"),
        content("a.jsonl cut", jsonl[:-12], "a.jsonl"),
        content("a.jsonl no json", jsonl + "word\n", "a.jsonl"),
        table("a.jsonl lists", "[1, 2]\n" * 24, "a.jsonl"),
        table("a.jsonl numbers", "1\n" * 24, "a.jsonl"),
        table("a.jsonl null texts", jsonl.replace('"we like it', 'null, "x": "'),
              "4 rows with no text are left out", code=0),
        content("a.jsonl texts are lists", "".join(
            json.dumps({"text": ["a", "b"], "label": i % 2}) + "\n" for i in range(24)), "text"),
        content("a.jsonl half characters", half, "a.jsonl"),
        content("a.jsonl label mapping", jsonl.replace('"label": 1', '"label": {"a": 1}'), "label"),
        content("a.json a mapping", '{"text": "a", "label": 1}', "every label is 1"),
        table("a.json a number", "5", "a.json"),
        table("a.json cut", json.dumps([{"text": "a", "label": 1}] * 24)[:-5], "a.json"),
        table("a.parquet empty", b"", "a.parquet"),
        table("a.parquet cut", parquet(text=["a"] * 24, label=[0, 1] * 12)[:-8], "a.parquet"),
        table("a.parquet a csv", GOOD, "a.parquet"),
        content("a.parquet no rows", parquet(text=[], label=[]), "a.parquet"),
        content("a.parquet labels are lists", parquet(text=["a"] * 24, label=lists), "label"),
        content("a.parquet texts are lists", parquet(text=lists, label=[0, 1] * 12), "text"),
        content("a.parquet null labels", parquet(text=["a"] * 24, label=[None, 1] * 12),
                "every label is 1"),
        table("a.parquet nan labels", parquet(
            text=[f"a {i}" for i in range(24)], label=[float("nan"), 1.0] * 12),
            "12 rows with no label are left out", code=0),
        content("a.parquet infinite scores", parquet(
            text=[f"a {i}" for i in range(24)], label=[float("inf"), 1.5] * 12), "label"),
        content("a.csv metrics of another kind", GOOD, "pearson",
                words=("task.metrics=[pearson]",)),
        table("a.csv unknown metric", GOOD, "nope", words=("task.metrics=[nope]",)),
        table("a.csv none held out", GOOD, "validation_fraction",
              words=("task.validation_fraction=0",)),
        table("a.csv too large a batch", GOOD, "batch",
              words=("trainer.batch_size=64", "trainer.accumulate=3")),
        table("a.csv a folder of other sets is missing", GOOD, "HERE/ood",
              words=("task.ood_dir=HERE/ood",)),
        table("a.csv other set", GOOD, "nope", words=("task.ood_dir=HERE", "task.ood=[nope]")),
        Case("classification: no place", CLASSIFY, ("task.data_dir",)),
    ]  # fmt: skip


def folders() -> list[Case]:
    """Spoil a folder of tables."""

    def case(name: str, contents: dict[str, str | bytes], *says: str, code: int = 2) -> Case:
        built = files({f"data/{key}": value for key, value in contents.items()})
        return Case(f"folder: {name}", words, says, code, both(empty, built))

    def empty(folder: Path) -> None:
        (folder / "data").mkdir()

    def loop(folder: Path) -> None:
        (folder / "data").mkdir()
        (folder / "data" / "train.csv").symlink_to("train.csv")

    def broken(folder: Path) -> None:
        (folder / "data").mkdir()
        (folder / "data" / "train.csv").symlink_to("gone.csv")

    def directory(folder: Path) -> None:
        (folder / "data" / "train.csv").mkdir(parents=True)

    other = GOOD.replace(",yes", ",maybe")
    words = (*CLASSIFY, "task.data_dir=HERE/data")
    return [
        case("empty", {}, "HERE/data"),
        case("no table", {"readme.md": "hello"}, "HERE/data"),
        case("only test", {"test.csv": GOOD}, "train"),
        case("only validation", {"validation.csv": GOOD}, "train"),
        case("twice train", {"train.csv": GOOD, "train.tsv": GOOD}, "train"),
        case("empty validation", {"train.csv": GOOD, "validation.csv": "text,label\n"},
             "validation.csv"),
        case("other columns", {"train.csv": GOOD, "validation.csv": GOOD.replace("text,", "t,")},
             "validation.csv"),
        case("a class that training lacks", {"train.csv": GOOD, "validation.csv": other}, "maybe",
             code=0),
        case("scores and classes", {"train.csv": GOOD, "validation.csv": "text,label\na,1.5\n"},
             "1.5", code=0),
        Case("folder: a loop of links", words, ("HERE/data",), build=loop),
        Case("folder: a broken link", words, ("HERE/data",), build=broken),
        Case("folder: a folder for a table", words, ("HERE/data",), build=directory),
        Case("folder: a missing one", words, ("HERE/data",)),
    ]  # fmt: skip


def generation() -> list[Case]:
    """Spoil texts with answers."""

    def case(name: str, content: str, *says: str, words: tuple[str, ...] = (), code: int = 2):
        place = ("task.data_dir=HERE/a.jsonl", *words)
        return Case(
            f"generation: {name}", (*GENERATE, *place), says, code, files({"a.jsonl": content})
        )

    empty = "".join(json.dumps({"source": f"a {i}", "target": ""}) + "\n" for i in range(24))
    return [
        case("empty answers", empty, "has no row with an answer", code=1),
        case("blank sources", LINES.replace("the film is good", " "), "rows", code=0),
        case("no such source", LINES, "nope", words=("task.source=[nope]",)),
        case("no such target", LINES, "nope", words=("task.target=nope",)),
        case("no such name in the template", LINES, "nope", words=("task.template='{nope}'",)),
        case("an open template", LINES, "task.template", words=("task.template='{source'",)),
        case("answers are numbers", LINES.replace('"target": "', '"target": 1, "x": "'), "target",
             code=1),
        case("accuracy", LINES, "accuracy", words=("task.metrics=[accuracy]",)),
        case("longest below shortest", LINES, "min_length",
             words=("task.min_length=9", "task.answer_length=4")),
        Case("generation: a model that only reads",
             ("method=emoe", "model=bert_tiny", "task=generation", "task.data_dir=HERE/a.jsonl"),
             ("bert",), build=files({"a.jsonl": LINES})),
        Case("generation: no place", GENERATE, ("task.data_dir",)),
    ]  # fmt: skip


def language() -> list[Case]:
    """Spoil plain text."""

    def case(
        name: str, contents: dict[str, str | bytes], place: str, *says: str, code: int = 1
    ) -> Case:
        return Case(
            f"language: {name}", (*LANGUAGE, f"task.data_dir=HERE/{place}"), says, code,
            files(contents),
        )  # fmt: skip

    return [
        case("empty", {"a.txt": ""}, "a.txt", "a.txt"),
        case("blank", {"a.txt": " \n" * 400}, "a.txt", "a.txt"),
        case("short", {"a.txt": "three short words"}, "a.txt", "a.txt"),
        case("latin 1", {"a.txt": b"caf\xe9 " * 4000}, "a.txt", "UTF-8"),
        case("zero bytes", {"a.txt": b"\0" * 4000}, "a.txt", "a.txt"),
        case("lines of json", {"a.txt": '{"text": "a b c"}\n' * 400}, "a.txt", "jsonl"),
        case("unknown kind", {"a.doc": b"\xd0\xcf\x11\xe0"}, "a.doc", "a.doc"),
        case("no column", {"a.csv": "body\n" + "one two\n" * 400}, "a.csv", "text"),
        case("only a test file", {"d/test.txt": "one two\n" * 400}, "d", "train", code=2),
        case("empty validation", {"d/train.txt": "one two\n" * 999, "d/validation.txt": ""}, "d",
             "validation.txt"),
        Case("language: no place", LANGUAGE, ("task.data_dir",)),
        Case("language: nothing there", (*LANGUAGE, "task.data_dir=HERE/no"), ("HERE/no",)),
    ]  # fmt: skip


def instructions() -> list[Case]:
    """Spoil instructions and conversations."""

    def lines(**row: object) -> str:
        return (json.dumps(row) + "\n") * 200

    def case(name: str, content: str, *says: str, words: tuple[str, ...] = ()) -> Case:
        place = ("task.data_dir=HERE/a.jsonl", *words)
        return Case(f"instruct: {name}", (*INSTRUCT, *place), says, 1, files({"a.jsonl": content}))

    chat = ("task.columns=[messages]",)
    user, tool = {"role": "user", "content": "hi"}, {"role": "nope", "content": "hi"}
    return [
        case("empty", "", "a.jsonl"),
        case("other columns", lines(question="a", answer="b"), "a.jsonl"),
        case("empty responses", lines(instruction="say", input="", output=""), "empty response"),
        case("no messages", lines(messages=[]), "messages", words=chat),
        case("messages are text", lines(messages="hi"), "messages", words=chat),
        case("nobody answers", lines(messages=[user]), "messages", words=chat),
        case("unknown role", lines(messages=[user, tool]), "messages", words=chat),
        case("no content", lines(messages=[user, {"role": "assistant"}]), "output", words=chat),
        case("no such column", lines(a=1), "nope", words=("task.columns=[nope]",)),
        Case("instruct: nothing there", (*INSTRUCT, "task.data_dir=HERE/no"), ("HERE/no",)),
        Case("instruct: a model that only reads",
             ("method=emoe", "model=bert_tiny", "task=instruct", "task.data_dir=HERE/a.jsonl"),
             ("bert",), build=files({"a.jsonl": lines(instruction="a", input="", output="b")})),
    ]  # fmt: skip


def picture(colour: tuple[int, int, int] = (9, 9, 9), size: int = 8) -> bytes:
    """Draw an image of one colour."""
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(spoil: Callable[[Path], None] | None = None) -> Build:
    """Draw two classes of ten images each in the folder `images`, then spoil them."""

    def build(folder: Path) -> None:
        for name, shade in (("cat", 40), ("dog", 200)):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(10):
                content = picture((shade, number, number))
                (folder / "images" / name / f"{number}.png").write_bytes(content)
        if spoil is not None:
            spoil(folder)

    return build


def images() -> list[Case]:
    """Spoil folders of images."""
    words = (*IMAGES, "task.data_dir=HERE/images", "trainer.batch_size=4")

    def case(name: str, spoil: Callable[[Path], None], *says: str, code: int = 1) -> Case:
        return Case(f"images: {name}", words, says, code, pictures(spoil))

    def write(name: str, content: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / "images" / name).write_bytes(content) and None

    def without(folder: Path) -> None:
        for path in (folder / "images" / "dog").iterdir():
            path.unlink()

    def one_class(folder: Path) -> None:
        without(folder)
        (folder / "images" / "dog").rmdir()

    def link(folder: Path) -> None:
        path = folder / "images" / "cat" / "0.png"
        path.unlink()
        path.symlink_to("0.png")

    return [
        case("no image", write("cat/0.png", b"hello"), "0.png"),
        case("an empty file", write("cat/0.png", b""), "0.png"),
        case("a cut file", write("cat/0.png", picture(size=64)[:90]), "0.png"),
        case("a loop of links", link, "0.png", code=2),
        case("an empty class", without, "the class cat only"),
        case("one class", one_class, "cat"),
        Case("images: nothing there", (*IMAGES, "task.data_dir=HERE/no"), ("HERE/no",)),
        Case("images: no place", IMAGES, ("task.data_dir",)),
        Case("images: no folders", words, ("HERE/images",),
             build=files({"images/0.png": picture()})),
        Case("images: a file", words, ("HERE/images",), build=files({"images": picture()})),
        Case("images: a text model",
             ("method=emoe", "model=bert_tiny", "task=image_folders", "task.data_dir=HERE/images"),
             ("bert",), build=pictures()),
    ]  # fmt: skip


def glue() -> list[Case]:
    """Spoil GLUE's own folders."""
    rows = {
        "sentence1": [f"{WORDS[i % 6]} {i}" for i in range(24)],
        "sentence2": [WORDS[(i + 1) % 6] for i in range(24)],
        "label": [i % 2 for i in range(24)],
        "idx": list(range(24)),
    }
    good = parquet(**rows)

    def case(name: str, contents: dict[str, str | bytes], *says: str, code: int = 1) -> Case:
        built = files({f"glue/{key}": value for key, value in contents.items()})
        return Case(f"glue: {name}", GLUE, says, code, built)

    def with_labels(*labels: object) -> bytes:
        return parquet(**{**rows, "label": list(labels) * (24 // len(labels))})

    def without(column: str) -> bytes:
        return parquet(**{key: value for key, value in rows.items() if key != column})

    return [
        case("another member", {"mrpc/train.parquet": good}, "rte", code=2),
        case("no validation", {"rte/train.parquet": good}, "validation", code=2),
        case("no training", {"rte/validation.parquet": good}, "train", code=2),
        case("hidden labels", {
            "rte/train.parquet": good, "rte/validation.parquet": with_labels(-1)}, "label"),
        case("labels beyond", {
            "rte/train.parquet": with_labels(0, 7), "rte/validation.parquet": good}, "7"),
        case("labels of text", {
            "rte/train.parquet": with_labels("a", "b"), "rte/validation.parquet": good}, "label"),
        case("one text", {
            "rte/train.parquet": without("sentence2"), "rte/validation.parquet": good},
            "sentence2"),
        case("no label", {
            "rte/train.parquet": without("label"), "rte/validation.parquet": good}, "label"),
        case("a cut file", {
            "rte/train.parquet": good[:99], "rte/validation.parquet": good}, "train.parquet"),
    ]  # fmt: skip
