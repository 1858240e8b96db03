"""A sweep over methods, or suites: an option goes to those that have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moe_runner.options.files import OptionFiles
from moe_runner.options.settings import KIND, option_keys


def belongs(key: str, kinds: Mapping[str, str]) -> bool:
    """Tell whether a key is an option of the method, or suite, of a job.

    Args:
        key: dotted; a key of another group always belongs.
        kinds: the job's, by group: {"method": "emoe"}.
    """
    group = key.partition(".")[0]
    return group not in kinds or key == group or key in option_keys({group: [kinds[group]]})


def kinds_of(words: Iterable[str], files: OptionFiles) -> dict[str, str]:
    """Find the method and the suite of a job.

    Args:
        words: its overrides, one value each.
        files: the groups and their defaults.
    """
    chosen = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    names = {
        group: files.kinds(group, [chosen.get(group, files.defaults[group])]) for group in KIND
    }
    return {group: each[0] for group, each in names.items() if each}


def fitted(
    jobs: Sequence[Sequence[str]], files: OptionFiles
) -> tuple[list[Sequence[str]], list[str]]:
    """Leave out of each job of a sweep the options that its method or suite does not have.

    Args:
        jobs: overrides of each.
        files: the groups and their defaults.

    Returns:
        The jobs, each that lost an option once (dense is not repeated for every number of experts),
        and a line for each option that was left out somewhere.
    """
    kept: list[Sequence[str]] = []
    without: dict[str, dict[str, None]] = {}
    for job in jobs:
        kinds = kinds_of(job, files)
        words = []
        for word in job:
            key = word.lstrip("+").partition("=")[0]
            if belongs(key, kinds):
                words.append(word)
            else:
                group = key.partition(".")[0]
                without.setdefault(key, {})[f"{group}={kinds[group]}"] = None
        if len(words) == len(job) or tuple(words) not in kept:
            kept.append(tuple(words))
    lines = [
        f"{key} is no option of {', '.join(names)}, which goes without it"
        if len(names) == 1
        else f"{key} is no option of {', '.join(names)}, which go without it"
        for key, names in without.items()
    ]
    return kept, lines
