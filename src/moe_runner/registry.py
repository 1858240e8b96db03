"""Components by name: methods, suites, families; this project's own and those of other packages.

Nothing is imported before it is asked for. This project's methods and suites are found by their
place; an installed package announces its own as entry points:

    [project.entry-points."moe_runner.methods"]
    toy = "toy_package.options:Toy"
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from moe_runner.options.errors import ConfigError, not_an_option

Loader = Callable[[], Any]


class Registry(Mapping[str, Any]):
    """The components of one kind; a mapping from their names.

    Args:
        kind: method, suite or family; the group of entry points is `moe_runner.<kind>s`.
        own: lists this project's own, name -> what loads it.
    """

    def __init__(self, kind: str, own: Callable[[], Mapping[str, Loader]]) -> None:
        self.kind, self.own = kind, own

    @cached_property
    def loaders(self) -> Mapping[str, Loader]:
        """Name -> what loads it.

        Raises:
            ConfigError: if two components have one name.
        """
        found = {name: ("moe-runner", loader) for name, loader in self.own().items()}
        for point in entry_points(group=f"moe_runner.{self.kind}s"):
            origin = point.dist.name if point.dist is not None else point.value
            if point.name in found:
                raise ConfigError(
                    f"the {self.kind} {point.name} of the package {origin} is there already, from "
                    f"{found[point.name][0]}; rename it, or uninstall the package"
                )
            found[point.name] = (origin, point.load)
        return {name: loader for name, (_, loader) in found.items()}

    def __getitem__(self, name: str) -> Any:
        return self.loaders[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.loaders  # Mapping's own would load it

    def __iter__(self) -> Iterator[str]:
        return iter(self.loaders)

    def __len__(self) -> int:
        return len(self.loaders)

    def find(self, name: str, given: str | None = None) -> Any:
        """Load a component.

        Args:
            name: of it.
            given: what the user typed, for the message; None: "<kind>=<name>".

        Raises:
            ConfigError: if there is none of the name; names the nearest.
        """
        if name not in self:
            raise ConfigError(not_an_option(given or f"{self.kind}={name}", "", name, list(self)))
        return self[name]


def load(module: str, attribute: str) -> Any:
    """Import what a module calls by a name."""
    return getattr(import_module(module), attribute)


def parts_of(package: str, place: str, attribute: str) -> dict[str, Loader]:
    """List the subpackages, or modules, of a package as components, without importing them.

    Args:
        package: its name; all in it whose `place` is there.
        place: module within the component that holds it; "": the component itself.
        attribute: name of the component in there.
    """
    spec = find_spec(package)
    assert spec is not None
    found: dict[str, Loader] = {}
    for part in pkgutil.iter_modules(spec.submodule_search_locations):
        if part.ispkg or not place:
            module = f"{package}.{part.name}{place and '.'}{place}"
            found[part.name] = partial(load, module, attribute)
    return found


def rows_of(module: str, attribute: str) -> dict[str, Loader]:
    """List the rows of a table by name.

    Args:
        module: that holds it.
        attribute: name of the table, a mapping.
    """
    return {name: partial(lambda row: row, row) for name, row in load(module, attribute).items()}


METHODS = Registry("method", lambda: parts_of("moe_runner.methods", "options", "METHOD"))
SUITES = Registry("suite", lambda: parts_of("moe_runner.tasks.suites", "", "SUITE"))
FAMILIES = Registry("family", lambda: rows_of("moe_runner.backbones.families", "ROWS"))
