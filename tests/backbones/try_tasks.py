"""Train a tiny random model of every model type on every task that its family can do.

One line per model type and task: score and seconds, or the line that says why not. Nothing is said
of quality: the weights are random and the updates few.

    python -m tests.backbones.try_tasks [model type ...]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

TASKS = {  # form -> overrides of a short run
    "classification": ["task=glue_mini/rte"],
    "language_modelling": ["task=wikitext_mini", "task.block_size=32", "task.ood=[]"],
    "instruct": ["task=instruct_mini", "task.max_length=64", "task.ood=[]"],
    "text_to_text": ["task=glue_mini/rte", "task.max_length=64"],
    "domain_generalisation": [
        "task=domainbed_mini", "task.members=[colored_digits/minus_90]", "task.augment=false",
        "trainer.eval_steps=2",
    ],
}  # fmt: skip
TOKENIZERS = {
    "classification": "bert_tiny", "language_modelling": "gpt2_tiny", "instruct": "llama_tiny",
    "text_to_text": "switch_tiny",
}  # fmt: skip
SHORT = ["task.limit=16", "task.eval_limit=8", "trainer.max_steps=2", "trainer.batch_size=8"]
EMOE = ["method=emoe", "method.num_experts=4", "method.top_k=2", "method.layers=[1]"]
COMMON = ["model=auto", "search=single", "trainer.learning_rate=1e-3", "device=cpu"]


def write_model(model_type: str, form: str, folder: Path) -> None:
    """Write a tiny random model with a tokenizer of this project."""
    from transformers import AutoModel, AutoTokenizer, ViTImageProcessor

    from moe_runner.backbones.weights import ASSETS
    from tests.backbones.tiny_configs import config_of

    sizes = {"max_position_embeddings": 300, "n_positions": 300, "max_seq_len": 300}
    if form == "domain_generalisation":
        config = config_of(model_type, image_size=16, patch_size=8)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / TOKENIZERS[form])
        tokenizer.save_pretrained(folder)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        plain = config_of(model_type)
        changes = {key: value for key, value in sizes.items() if key in vars(plain)}
        config = config_of(model_type, vocab_size=len(tokenizer), **changes)
        for key, value in ids.items():
            if value is not None:
                setattr(config, key, value)
        if form == "text_to_text":
            config.decoder_start_token_id = tokenizer.pad_token_id
    AutoModel.from_config(config).save_pretrained(folder)


def one(model_type: str, form: str, place: Path) -> str:
    """Carry out one run; return its score, or the first line of what went wrong."""
    from hydra import compose, initialize_config_dir

    from moe_runner.cli.values import parse_config
    from moe_runner.options.errors import ConfigError
    from moe_runner.options.folders import CONF
    from moe_runner.runs.store import Store
    from moe_runner.sweeps.plan import make_plan
    from moe_runner.training.execute import execute

    folder = place / f"tiny-{model_type}"
    try:
        write_model(model_type, form, folder)
        words = [*COMMON, *TASKS[form], *SHORT, f"model.path={folder}", f"paths.output={place}"]
        words.append(f"paths.cache={place}/cache")
        outcome = []
        for method in (["method=dense"], EMOE):
            with initialize_config_dir(str(CONF), version_base="1.3"):
                settings = parse_config(compose("config", [*words, *method]))
            (run,) = make_plan(settings).runs
            result = execute(run, settings, Store(place))
            outcome.append("failed" if result is None else f"{result.primary:.3g}")
        return " / ".join(outcome)
    except (ConfigError, ValueError, RuntimeError, AssertionError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    from transformers.utils import logging

    from moe_runner.backbones.families import ROWS
    from tests.backbones.tiny_configs import CONFIGS

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    wanted = sys.argv[1:]
    print("| model type | task | dense / emoe | seconds |\n| --- | --- | --- | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        for row in ROWS.values():
            for model_type in row.types:
                for form in row.forms:
                    if model_type not in CONFIGS or wanted and model_type not in wanted:
                        continue
                    started = time.monotonic()
                    outcome = one(model_type, form, Path(temporary))
                    seconds = time.monotonic() - started
                    print(f"| {model_type} | {form} | {outcome} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
