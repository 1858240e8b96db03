"""Measure reading and tokenising a task of QQP's size: time of two starts, and memory.

`python scripts/bench_data.py`           363,846 pairs of sentences; a minute
`python scripts/bench_data.py --quick`   a tenth of them

The pairs are made of words of the bundled BERT's vocabulary, as long as QQP's questions are, and
written as one parquet file. Every variant is a process of its own, which does the data part of a
run: find the files, hash them, read, check, tokenise; then it reads 64 batches of 32.

- `in memory`: without a cache, as it is with `cache=None`.
- `first start`: the cache is empty. `second start`: what the first one left is found.

`extra MiB` is the peak of anonymous memory beyond what was held before: pages of a memory-mapped
file are not counted, since the system takes them back when it needs them. `peak RSS` counts all.
The baseline of the ratio is `first start`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import Row, parser, save, set_threads, show, status_kib

PAIRS = 363_846  # of QQP's training set
VALIDATION = 2_000
WORDS = (4, 18)  # of a question
BATCHES, BATCH_SIZE = 64, 32
VARIANTS = ("in memory", "first start", "second start")


def main() -> None:
    """Write the data, measure each variant in a process of its own, print and write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--measure", nargs=2, metavar=("DATA", "CACHE"), help="one start")
    options = arguments.parse_args()
    set_threads(options.threads)
    if options.measure:
        data, cache = options.measure
        print(json.dumps(measure(Path(data), Path(cache) if cache != "none" else None)))
        return
    pairs = PAIRS // 10 if options.quick else PAIRS
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        data, cache = Path(temporary) / "data", Path(temporary) / "cache"
        text_mib = write_pairs(data / "qqp", pairs)
        found = {
            name: start(data, None if name == "in memory" else cache, options.threads)
            for name in VARIANTS
        }
        baseline = found["first start"]["seconds"]
        for name, figures in found.items():
            row = Row(f"{pairs} pairs", name, "data part", figures["seconds"], 1.0)
            row.ratio = baseline / row.seconds
            row.peak_extra_mib = figures["extra_mib"]
            row.extra = {
                "CPU s": round(figures["cpu_seconds"], 1),
                "peak RSS, MiB": round(figures["rss_mib"]),
                "texts, MiB": round(text_mib),
            }
            rows.append(row)
        size = sum(file.stat().st_size for file in cache.rglob("*.arrow"))
        rows[-1].extra["cache, MiB"] = round(size / 2**20)
    show("Data of a task", rows)
    save("data", rows)


def write_pairs(folder: Path, pairs: int) -> float:
    """Write train.parquet and validation.parquet in the form of QQP.

    Returns:
        The texts of the training set, in MiB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moe_runner.tasks.mini.corpus import documents

    words = sorted(
        {word for document in documents(count=500, seed=7) for word in document[0].split()}
    )
    rng = random.Random(0)
    folder.mkdir(parents=True)
    size = 0
    for split, count in (("train", pairs), ("validation", VALIDATION)):
        schema = pa.schema(
            {"question1": pa.string(), "question2": pa.string(), "label": pa.int64()}
        )
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
            for start_ in range(0, count, 10_000):
                rows = range(start_, min(start_ + 10_000, count))
                columns = {
                    name: [" ".join(rng.choices(words, k=rng.randint(*WORDS))) for _ in rows]
                    for name in ("question1", "question2")
                }
                if split == "train":
                    size += sum(len(text) for texts in columns.values() for text in texts)
                labels = [rng.randint(0, 1) for _ in rows]
                writer.write_table(pa.table({**columns, "label": labels}, schema=schema))
    return size / 2**20


def start(data: Path, cache: Path | None, threads: int | None) -> dict[str, float]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(data), str(cache or "none")]
    command += ["--threads", str(threads)] if threads else []
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def measure(data: Path, cache: Path | None) -> dict[str, float]:
    """Do the data part of a run, imports and the loading of the model left out.

    Returns:
        seconds and cpu_seconds; extra_mib of anonymous memory; rss_mib.
    """
    import pyarrow.parquet  # noqa: F401 imported before the clock starts
    from hydra import compose, initialize_config_dir

    from moe_runner import tasks
    from moe_runner.backbones.weights import find_weights
    from moe_runner.cli.values import parse_config
    from moe_runner.options.folders import CONF
    from moe_runner.sweeps.plan import make_plan
    from moe_runner.training.fit import silence_libraries
    from moe_runner.training.forms import FORMS

    silence_libraries()
    place = cache or data.parent / "unused"
    overrides = ["method=dense", "task=glue/qqp", f"task.data_dir={data}", f"paths.cache={place}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = parse_config(compose("config", overrides))
    watch, started, cpu = AnonymousMemory(), time.perf_counter(), time.process_time()
    with watch:
        (run,) = make_plan(settings).runs
    planning, cpu_planning = time.perf_counter() - started, time.process_time() - cpu
    spec = tasks.spec(run.task, "qqp")
    nothing = tasks.TaskData(spec=spec, train=None, validation={}, ood={}, ood_specs={})  # type: ignore[arg-type]
    form = FORMS[run.form](run, nothing, find_weights(run.model))  # the model is not our subject
    started, cpu = time.perf_counter(), time.process_time()
    with watch:
        texts = tasks.load(run.task, "qqp", cache)
        encoded = form.encode(texts.train, spec.columns, cache)
        rng = random.Random(0)
        for _ in range(BATCHES):
            form.collator([encoded[rng.randrange(len(encoded))] for _ in range(BATCH_SIZE)])
    found = {
        "seconds": planning + time.perf_counter() - started,
        "cpu_seconds": cpu_planning + time.process_time() - cpu,
    }
    memory = {"extra_mib": watch.rise / 1024, "rss_mib": status_kib("VmHWM") / 1024}
    return {**found, **memory}


class AnonymousMemory:
    """Watch how far the anonymous memory of this process rises, every 5 ms. Linux only.

    Entered several times, it keeps the largest rise.
    """

    rise = 0

    def __enter__(self) -> AnonymousMemory:
        self.before = status_kib("RssAnon")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.005):
            self.rise = max(self.rise, status_kib("RssAnon") - self.before)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


if __name__ == "__main__":
    main()
