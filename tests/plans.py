"""The plans of the studies, made once for all tests of a process."""

from __future__ import annotations

import functools
import tempfile

from moe_runner.options.folders import option_folders
from moe_runner.sweeps.study import Profile, read_study
from moe_runner.sweeps.study_plan import StudyPlan, plan_study

FOLDERS = option_folders()


@functools.cache
def planned(name: str, profile: Profile) -> StudyPlan:
    """Plan a study of this project; nothing is written but hashes of files."""
    place = tempfile.mkdtemp(prefix="plans-")
    return plan_study(FOLDERS, read_study(FOLDERS, name), profile, {"paths.cache": place})
