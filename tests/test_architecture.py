"""The house stands as it is drawn: short files, imports that point down, light planning.

Imports are read from the source, so that nothing has to be imported, and those within functions
count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
LINES = 500
MINI = "moe_runner/tasks/mini/"
WORD_LISTS = {f"{MINI}grammar.py", f"{MINI}lexicon.py"}  # may be longer

# From the top: a module imports from its own layer and from those below it. Names are patterns of
# modules or packages in moe_runner; "" is the package itself, which only offers what is below.
LAYERS = (
    ("", "train", "cli"),
    ("sweeps", "training", "report", "analysis"),
    ("conversion", "tasks"),
    ("methods", "backbones"),
    ("runs",),
    ("moe", "kernels", "options", "registry", "metrics", "files", "hub", "downloads", "console"),
)
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}
LIGHT = (  # are imported, with all that they import, before a run has to be carried out
    "train",
    "cli",
    "sweeps",
    "report",
    "tasks",
    "backbones.families",
    "methods.*.options",
    "runs",
    "options",
    "registry",
    "metrics",
)


@dataclass(frozen=True)
class Import:
    """An import of one module by another.

    Args:
        importer: module, without "moe_runner."; of the package itself "".
        imported: module of ours in the same form, or the name of another package.
        ours: whether it is a module of ours.
        line: in the importer.
        at_start: it is carried out when the importer is imported.
    """

    importer: str
    imported: str
    ours: bool
    line: int
    at_start: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Find the files of all modules of moe_runner, by name."""
    root = SOURCE / "moe_runner"
    found = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def statements(node: ast.AST, at_start: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Walk through a tree, and tell of each node whether it is carried out on import."""
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield child, at_start
        yield from statements(child, at_start and not inside and not typing)


@cache
def imports(name: str) -> tuple[Import, ...]:
    """List the imports of a module of ours."""
    found = []
    for node, at_start in statements(tree_of(name)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, rest = target.partition(".")
            if top != "moe_runner":
                found.append(Import(name, top, False, node.lineno, at_start))
                continue
            module = rest if rest in modules() else rest.rpartition(".")[0]
            assert module in modules(), f"{name}:{node.lineno}: {target}"
            found.append(Import(name, module, True, node.lineno, at_start))
    return tuple(dict.fromkeys(found))


def belongs(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a module is, or is in, what some patterns mean."""
    return any(
        fnmatchcase(name, pattern) or (pattern != "" and fnmatchcase(name, f"{pattern}.*"))
        for pattern in patterns
    )


def layer(name: str) -> int:
    """Find the number of a module's layer, 0 is the top."""
    (found,) = [number for number, patterns in enumerate(LAYERS) if belongs(name, patterns)]
    return found


def test_no_source_file_is_long_but_word_lists():
    files = {file.relative_to(SOURCE).as_posix(): file for file in SOURCE.rglob("*.py")}
    lines = {
        name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in files.items()
    }
    assert {name: n for name, n in lines.items() if n > LINES and name not in WORD_LISTS} == {}
    assert lines.keys() > WORD_LISTS


def test_imports_are_seen_and_when_they_are_carried_out():
    of_torch = {
        name: {each.at_start for each in imports(name) if each.imported == "torch"}
        for name in ("training.fit", "training.execute", "train")
    }
    assert of_torch == {"training.fit": {True}, "training.execute": {False}, "train": set()}
    assert "torch" in reached("training.fit")
    assert reached("train")["cli.arguments"] == "train"


def test_every_module_has_one_layer():
    for name in modules():
        assert sum(belongs(name, patterns) for patterns in LAYERS) == 1, name


def test_imports_point_down():
    upward = [
        str(each)
        for name in modules()
        for each in imports(name)
        if each.ours and layer(each.imported) < layer(name)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    below = {
        name: {each.imported for each in imports(name) if each.ours and each.at_start} - {name}
        for name in modules()
    }
    left = dict(below)  # modules without a place behind all that they import
    while free := [name for name, names in left.items() if not names & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def reached(name: str) -> dict[str, str]:
    """Find what is imported when a module is: module or package -> who imports it first."""
    found, new = {name: ""}, [name]
    while new:
        current = new.pop()
        if current not in modules():
            continue
        needed = [each.imported for each in imports(current) if each.at_start]
        parents = [current.rpartition(".")[0]] if current else []  # are imported before it
        for target in needed + parents:
            if target not in found:
                found[target] = current
                new.append(target)
    return found


@pytest.mark.parametrize("pattern", LIGHT)
def test_what_plans_and_reports_is_light(pattern):
    names = [name for name in modules() if belongs(name, (pattern,))]
    assert names
    heavy = []
    for name in names:
        found = reached(name)
        heavy += [f"{name}: {found[package]} imports {package}" for package in HEAVY & found.keys()]
    assert heavy == []


def method_classes() -> set[str]:
    """Name the options classes of all methods."""
    return {
        node.name
        for name in modules()
        if fnmatchcase(name, "methods.*.options")
        for node in tree_of(name).body
        if isinstance(node, ast.ClassDef)
    }


def test_nobody_asks_which_method_it_is_but_methods_and_conversion():
    classes = method_classes()
    assert "EMoE" in classes
    asked = []
    for name in modules():
        if belongs(name, ("methods", "conversion")):
            continue
        for node in ast.walk(tree_of(name)):
            tested: ast.AST | None = None
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                tested = node.args[1]
            elif isinstance(node, ast.MatchClass):
                tested = node.cls
            if tested is None:
                continue
            words = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(tested)}
            if words & classes:
                asked.append(f"{name}:{tested.lineno}")
    assert asked == []
