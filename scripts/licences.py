"""Write the licence of every pinned package into docs/supply-chain.md: `make audit`.

Read from the metadata of the installed packages, no network. With --check nothing is written; exit
code 1 if the page is not up to date.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
PAGE = ROOT / "docs" / "supply-chain.md"
START, END = "<!-- licences: made by scripts/licences.py -->", "<!-- end -->"
NOT_TOLD = "not in its metadata"
SPDX = {  # what packages write in a field for free text, or as a classifier -> SPDX
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD": "BSD, not told which",
    "BSD License": "BSD, not told which",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "LGPL-3.0-or-newer": "LGPL-3.0-or-later",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "The MIT License (MIT)": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    **{
        name: name
        for name in (
            "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "LGPL-2.1-or-later", "MIT",
            "MIT OR Apache-2.0", "MPL-2.0", "MPL-2.0 AND MIT", "PSF-2.0",
        )
    },
}  # fmt: skip


def pins(file: Path = PINS) -> dict[str, str]:
    """Read the version of every pinned package."""
    lines = file.read_text(encoding="utf-8").split()
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def licence(package: str) -> tuple[str, str]:
    """Find the licence of an installed package.

    Returns:
        The licence, in SPDX's words where they can be known, and where it is told: "expression",
        "field", "classifier", or "".

    Raises:
        PackageNotFoundError: if it is not installed.
    """
    told = metadata(package)
    if expression := told["License-Expression"]:
        return expression, "expression"
    field = (told["License"] or "").partition("\n")[0].strip()  # some put the whole text there
    if field in SPDX and "not told" not in SPDX[field]:
        return SPDX[field], "field"
    words = [word.rpartition(" :: ")[2] for word in told.get_all("Classifier") or ()]
    known = sorted(
        {SPDX[word] for word in words if word.endswith((")", "License")) and word in SPDX}
    )
    if known:
        return " or ".join(known), "classifier"
    return (SPDX[field], "field") if field in SPDX else (NOT_TOLD, "")


def table() -> str:
    """Lay out all pinned packages.

    Raises:
        SystemExit: if one is not installed as pinned.
    """
    lines = ["| package | version | licence | told by |", "| --- | --- | --- | --- |"]
    problems = []
    for package, version in sorted(pins().items(), key=lambda pin: pin[0].lower()):
        try:
            installed = metadata(package)["Version"]
            lines.append(f"| {package} | {version} | {' | '.join(licence(package))} |")
        except PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != version:  # torch's builds are 2.13.0+cpu, +cu130
            problems.append(
                f"{package}=={version} is pinned and {installed} installed; make install"
            )
    if problems:
        sys.exit("\n".join(problems))
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """Put a table in its place on the page."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the page, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    new = with_table(page, table())
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        sys.exit(f"{PAGE} is not up to date; run scripts/licences.py")


if __name__ == "__main__":
    main()
