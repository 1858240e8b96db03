"""The subcommand `moe-report analyze`. torch is imported when there is a model to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from moe_runner.analysis.records import Subject, told_apart
from moe_runner.analysis.sheets import compared_sets, expert_sheet, sets_sheet, subject_sheets
from moe_runner.analysis.stored import Analysis, Picture, analyses_folder, write_analysis
from moe_runner.console import Output
from moe_runner.files import no_place, unusable, write_atomic
from moe_runner.options.checks import device_problem
from moe_runner.options.errors import ConfigError, nearest
from moe_runner.options.folders import option_folders
from moe_runner.report.page import write_page
from moe_runner.report.sheet import Sheet, to_csv, to_rich
from moe_runner.report.store_commands import PLAN_KEYS, plans_of, read_words
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import RunFolder, Store
from moe_runner.sweeps.study import study_names

MODEL_FILE = "moe_runner.json"  # of a folder that `save_pretrained` wrote
LONGEST = 80  # letters of the folder's name
KEEP = "keep_model=best rerun=true"


def analyze(words: Sequence[str]) -> None:
    """Show what the experts of kept runs are: load, tokens, likeness, activation, change.

    moe-report analyze c5d7488f             a run, by the first digits of its id
    moe-report analyze c5d7488f b403b108    several: also their use of the experts side by side
    moe-report analyze emoe_glue_full       the runs of a study whose weights were kept
    moe-report analyze my_model texts=a.txt a folder of save_pretrained or export=moe

    Weights are kept with moe-run ... keep_model=best.

    texts=          files of one text a line, separated by commas; else the run's evaluation data
    limit=256       examples of each set
    length=128      tokens of a line of texts=
    device=auto     or cpu, cuda, mps
    threads=        of torch; torch's own choice
    output=outputs  the folder of the runs
    to=<output>/analysis/<name>
    profile=mini    of studies; small or paper
    trainer.precision=bf16     of studies that were run with it
    study.only.method=emoe     only such runs of studies; also task, seed, ...
    config_dir=my_conf         with the option files of --config-dir

    Args:
        words: names of what is analysed, and key=value.

    Raises:
        ConfigError: for an unknown key, value or name, and for a run that was not kept.
        StoreError: for an unknown run, or one whose files are damaged.
    """
    names = [word for word in words if "=" not in word]
    given = read_words(
        "analyze", [word for word in words if "=" in word], texts="", limit="256", length="128",
        device="auto", threads="", output="outputs", to="", profile="mini", **PLAN_KEYS,
    )  # fmt: skip
    if not names:
        raise ConfigError(
            "moe-report analyze needs a run id, a study or a model folder; moe-report analyze "
            "--help says more"
        )
    limit, length = (read_count(key, given[key]) for key in ("limit", "length"))
    threads = read_count("threads", given["threads"]) if given["threads"] else None
    if (problem := device_problem(given["device"])) is not None:
        raise ConfigError(problem)
    output = Path(given["output"])
    texts = read_texts(given["texts"])
    store = Store(output)
    found = [place for name in names for place in places_of(name, given, store)]
    places = list(dict.fromkeys(found))
    out = Path(given["to"]) if given["to"] else analyses_folder(output) / joined(names)
    for folder in (out, output / "cache"):
        if (reason := unusable(folder)) is not None:
            raise ConfigError(f"{'to' if folder == out else 'output'}={folder}: {reason}")

    from moe_runner.analysis.subjects import Request, folder_subject, run_subject  # torch: seconds

    request = Request(texts, limit, length, given["device"], threads, output / "cache")
    subjects = [
        folder_subject(place, request)
        if isinstance(place, Path)
        else run_subject(place, store, request)
        for place in places
    ]
    runs = tuple(place for place in places if isinstance(place, str))
    files = write(told_apart(subjects), runs, out, store)
    print(f"{len(files)} files in {out}")
    print(files[-1])


def read_count(key: str, value: str) -> int:
    """Read a whole number above 0.

    Raises:
        ConfigError: for another value.
    """
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}={value} is not valid; use a whole number from 1 on")
    return int(value)


def read_texts(files: str) -> dict[str, list[str]]:
    """Read the user's texts.

    Args:
        files: separated by commas; "": none.

    Returns:
        Lines that are not blank by the file's name.

    Raises:
        ConfigError: for a file that is not there, no UTF-8, or holds no text.
    """
    found: dict[str, list[str]] = {}
    for name in files.split(",") if files else []:
        if (problem := no_place("texts", name)) is not None:
            raise ConfigError(problem)
        try:
            text = Path(name).expanduser().read_bytes().decode("utf-8")
        except OSError as error:
            reason = error.strerror
            raise ConfigError(f"texts={name}: {reason}; give a file of one text a line") from error
        except ValueError as error:
            raise ConfigError(f"texts={name} is not UTF-8 ({error}); convert it") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"texts={name} holds no text; give a file of one text a line")
        short = Path(name).name
        found[name if short in found else short] = lines
    return found


def places_of(name: str, given: Mapping[str, str], store: Store) -> list[str | Path]:
    """Find what a name means.

    Args:
        name: of a study, a model folder or a run.
        given: the other arguments.
        store: holds the runs.

    Returns:
        Ids of runs, or the folder.

    Raises:
        ConfigError: if it is none of these, or no run of a study was kept.
        StoreError: for the start of several runs.
    """
    studies = study_names(option_folders(given["config_dir"] or None))
    if name in studies:
        return kept_of(name, given, store)
    folder = Path(name)
    if no_place("folder", name) is None and folder.is_dir():
        if (folder / MODEL_FILE).is_file():
            return [folder]
        if folder.resolve().parent != store.root.resolve():
            raise ConfigError(
                f"{name} is a folder without {MODEL_FILE}; use one of save_pretrained or of "
                "moe-run ... export=moe, or a run id"
            )
        name = folder.resolve().name
    try:
        return [store.find(name)]
    except StoreError as error:
        guess = nearest(name, studies)
        hint = f"did you mean the study {guess}?" if guess else "nor a study or model folder"
        raise ConfigError(f"{error}; {hint}") from error


def kept_of(study: str, given: Mapping[str, str], store: Store) -> list[str | Path]:
    """List the runs of a study whose weights were kept; how many were not is told."""
    plans, _ = plans_of({**given, "study": study})
    ids = [job.run.id for plan in plans for job in plan.jobs if job.run.method.converts]
    kept = [run_id for run_id in ids if RunFolder(store.folder(run_id)).best.is_dir()]
    profile = given["profile"]
    if not kept:
        raise ConfigError(
            f"study={study}: the weights of none of its {len(ids)} runs with experts were kept; "
            f"run moe-run study={study} profile={profile} {KEEP}"
        )
    if len(kept) < len(ids):
        print(f"study={study}: {len(ids) - len(kept)} of {len(ids)} runs were not kept ({KEEP})")
    return [*kept]


def joined(names: Sequence[str]) -> str:
    """Name the folder of an analysis."""
    name = "-".join(Path(name).resolve().name for name in names)
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{sha256(' '.join(names).encode()).hexdigest()[:8]}"


def write(
    subjects: Sequence[Subject], runs: tuple[str, ...], out: Path, store: Store
) -> list[Path]:
    """Print the tables, and write tables, pictures and the page.

    Args:
        subjects: what was seen.
        runs: ids of the runs among them.
        out: folder; it is made.
        store: of the runs.

    Returns:
        The files, the page last.
    """
    from moe_runner.analysis.drawing import draw_sets, draw_subject  # matplotlib: seconds

    out.mkdir(parents=True, exist_ok=True)
    sheets: list[Sheet] = []
    pictures: list[Picture] = []
    files: list[Path] = []

    def keep(sheet: Sheet, name: str, whole: Sheet | None = None) -> None:
        Output(markup=False).print(to_rich(sheet))
        sheets.append(sheet)
        write_atomic(out / f"{name}.csv", to_csv(whole or sheet))
        files.append(out / f"{name}.csv")

    for subject in subjects:
        for note in subject.notes:
            print(f"{subject.name}: {note}")
        for kind, sheet in subject_sheets(subject).items():
            whole = expert_sheet(subject, None) if kind == "experts" else None
            keep(sheet, f"{subject.name}-{kind}", whole)
        pictures += draw_subject(subject, out)
    title = subjects[0].title if len(subjects) == 1 else f"{len(subjects)} models"
    compared = compared_sets(subjects)
    if len(compared) > 1:
        keep(sets_sheet(f"{title}: use of the experts", compared), "sets")
        picture = draw_sets(title, compared, out / "sets.png")
        pictures += [picture] if picture else []
    files += [picture.file for picture in pictures]
    analysis = Analysis(
        name=out.name,
        title=title,
        runs=runs,
        notes=tuple(f"{s.name}: {note}" for s in subjects for note in s.notes),
        sheets=tuple(sheets),
        pictures=tuple(pictures),
        files=tuple(file.name for file in files),
    )
    write_page(out / "index.html", [], [], {}, store, [analysis])
    write_analysis(out, analysis)
    return [*files, out / "index.html"]
