"""A run: every setting that can change a number, resolved; its id and its config.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from moe_runner.console import clear
from moe_runner.files import masked
from moe_runner.hub import COMMIT
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError
from moe_runner.options.fields import later
from moe_runner.options.method import Method
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.options.task import FormName, Task
from moe_runner.options.training import Trainer, Tuning
from moe_runner.registry import METHODS, SUITES
from moe_runner.runs.identity import canonical_json, identifying, run_id
from moe_runner.runs.types import hints, mismatch

DIGITS = 12  # of a hash that tells two data sets of one name apart


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and evaluation: one method on one task with one learning rate and one seed.

    Args:
        method: how the FFN sites are converted.
        protocol: equations or reference behaviour.
        model: the backbone.
        tuning: which parameters train.
        task: with one member.
        trainer: with learning_rate and epochs resolved.
        seed: of the head, the data order and the dropout.
        form: how the backbone does the task.
        data: what each split holds: a content hash, or the Hub's name and revision.
        weights: what the backbone's files hold, in the same way.
    """

    method: Method
    protocol: Protocol
    model: Model
    tuning: Tuning
    task: Task
    trainer: Trainer
    seed: int
    form: FormName = later("classification")
    data: Mapping[str, str]
    weights: str

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the hash of all that can change a number."""
        return run_id(self)

    @property
    def is_open(self) -> bool:
        """Whether the id may still change: a revision of the Hub whose commit nothing told."""
        return any(map(is_open, (self.weights, *self.data.values())))

    @property
    def task_name(self) -> str:
        """The one member task."""
        (name,) = self.task.members
        return name

    @property
    def label(self) -> str:
        """A short line for people."""
        tuning = "" if self.tuning.name == "full" else f" {self.tuning.name}"
        return named(
            f"{self.method.name} {self.model.label}{tuning} {self.task.suite}/{self.task.title} "
            f"lr {self.trainer.learning_rate:g} seed {self.seed}"
        )

    def axes(self) -> dict[str, Any]:
        """Say what distinguishes the run, for tables; names of the user's without secrets."""
        return dict(self._axes)

    @cached_property
    def _axes(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "model": named(self.model.label),
            "tuning": self.tuning.name,
            "protocol": self.protocol.name,
            "suite": self.task.suite,
            "task": named(self.task.title),
            "learning_rate": self.trainer.learning_rate,
            "seed": self.seed,
        }

    def settings(self) -> dict[str, Any]:
        """List what must be equal for two runs to be repetitions: all but rate, seed and task."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"weights": self.weights}
        for name in ("method", "protocol", "tuning", "task", "trainer"):
            options = getattr(self, name)
            flat |= {
                f"{name}.{f.name}": plain(getattr(options, f.name)) for f in identifying(options)
            }
        for name in ("method.name", "protocol.name", "tuning.name", "task.suite", "task.members"):
            del flat[name]
        del flat["trainer.learning_rate"]
        if self.task.own_data:
            flat["task.data"] = digest_of(self.data)
        return hidden(flat)

    def to_yaml(self) -> str:
        """Write the whole run as YAML, the text of config.yaml; secrets in it are ***."""
        tree = hidden({"id": self.id, **plain(dataclasses.asdict(self))})
        return yaml.safe_dump(tree, sort_keys=False)


def digest_of(data: Mapping[str, str]) -> str:
    """Sum up what some splits hold; out-of-domain sets are left out, as they train nothing."""
    own = {split: of for split, of in data.items() if not split.startswith("ood/")}
    return sha256(canonical_json(own).encode()).hexdigest()[:DIGITS]


def is_open(fingerprint: str) -> bool:
    """Tell whether weights or data are a revision of the Hub whose commit nothing told."""
    revision = fingerprint.rpartition(" at ")[2]
    return fingerprint.startswith("hub ") and COMMIT.fullmatch(revision) is None


def named(text: str) -> str:
    """Write a name of the user's for people: in one line, without secrets."""
    return clear(masked(text))


def plain(value: Any) -> Any:
    """Turn tuples into lists, which YAML has a word for."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def hidden(value: Any) -> Any:
    """Put *** in place of secrets in every text of a plain value, see `files.masked`."""
    if isinstance(value, dict):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def before(cls: type) -> dict[str, Any]:
    """Say what the options mean that a stored run may not name yet: their neutral values.

    Args:
        cls: a dataclass of options.
    """
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata["neutral"] for f in fields if "neutral" in f.metadata}


def stored_run(folder: Path, given: str) -> Run:
    """Read back the run that a folder is of.

    Args:
        folder: of the run; its name is the id.
        given: what the user typed, for messages: "evaluate=<id>".

    Raises:
        ConfigError: see `read_run`; or if config.yaml is of another run.
    """
    found = read_run(folder / "config.yaml")
    if found.id != folder.name:
        raise ConfigError(
            f"{given}: its config.yaml is of the run {found.id}; it was changed, or another "
            "version wrote it, or a secret in it is not written down (***): run its command again "
            "with keep_model=best"
        )
    return found


def read_run(file: Path) -> Run:
    """Read a run back from its config.yaml.

    Raises:
        ConfigError: if it is not there, cannot be read, is damaged, or of a version with other
            options: with the remedy.
    """
    remedy = "run its command again with keep_model=best rerun=true"
    tree = read_tree(file, remedy)
    groups: dict[str, Any] = {"protocol": Protocol, "model": Model, "tuning": Tuning}
    groups |= {"trainer": Trainer, "method": None, "task": None}
    rest: dict[str, Any] = {name: tree.get(name) for name in ("seed", "form", "data", "weights")}
    rest["form"] = tree.get("form", "classification")
    wrong = [f"no {name}" for name in groups if not isinstance(tree.get(name), Mapping)]
    wrong += [
        line for name, value in rest.items() if (line := mismatch(value, hints(Run)[name], name))
    ]
    if wrong:
        raise ConfigError(f"{file} is damaged ({wrong[0]}); {remedy}")
    method, suite = str(tree["method"].get("name")), str(tree["task"].get("suite"))
    if method not in METHODS:
        raise ConfigError(f"{file} has method={method}, unknown to this version")
    if suite not in SUITES:
        raise ConfigError(f"{file} has task={suite}, unknown to this version")
    groups |= {"method": METHODS[method], "task": SUITES[suite].options}
    problems: list[str] = []
    parts: dict[str, Any] = {
        name: build(cls, {**before(cls), **tree[name]}, name, problems)
        for name, cls in groups.items()
    }
    if problems:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    return Run(**rest, **parts)


def read_tree(file: Path, remedy: str) -> dict[str, Any]:
    """Read a config.yaml.

    Args:
        file: in a run's folder.
        remedy: what to do if that fails.

    Raises:
        ConfigError: if it is not there, cannot be read, or holds no mapping.
    """
    try:
        tree = yaml.safe_load(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file.parent} has no config.yaml, which says what was run; {remedy}"
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); {remedy}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{file} is damaged ({reason}); {remedy}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} is damaged (it holds no mapping); {remedy}")
    return tree
