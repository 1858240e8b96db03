"""The campaigns themselves, a little of each: that they run, strike and find what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.torture import commands, generated
from tests.torture.bad import data, models, options, reports


def test_the_table_of_bad_inputs_is_long_and_names_each_once():
    cases = [case for module in (options, data, models, reports) for case in module.cases()]
    assert len(cases) >= 600
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)


@pytest.mark.long
def test_command_lines_that_are_made_up_are_judged_in_lines():
    assert generated.try_many(20, 0) == 20


@pytest.mark.long
def test_a_write_is_failed_and_a_process_killed_in_the_middle(tmp_path):
    library = commands.build_faults(tmp_path)
    program = (
        "import sys; from pathlib import Path; from tests.torture import commands\n"
        "commands.faults().faults_arm(sys.argv[1].encode(), 2, int(sys.argv[2]))\n"
        "try:\n"
        "    Path(sys.argv[1], 'a').write_text('0123456789')\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "print(commands.disarmed())\n"
    )

    def run(mode: int) -> tuple[int, str, str]:
        folder = tmp_path / f"mode{mode}"
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), str(mode)],
            cwd=commands.ROOT, capture_output=True, text=True,
            env={"LD_PRELOAD": str(library), "PATH": "/usr/bin", "PYTHONPATH": "."},
        )  # fmt: skip
        return done.returncode, done.stdout, (folder / "a").read_text()

    assert run(commands.COUNT) == (0, "2 \n", "0123456789")
    code, out, left = run(commands.FAIL)
    assert (code, out) == (0, "No space left on device\n3 write\n")  # Python tries again
    assert left == "01234" + "0123456789"  # a torn file, if nobody had noticed
    assert run(commands.KILL) == (-9, "", "01234")
