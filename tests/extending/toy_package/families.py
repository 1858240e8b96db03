"""The family `my_roberta`: RoBERTa under another name, with classes of its own."""

from __future__ import annotations

from moe_runner.backbones.families import Family

MY_ROBERTA = Family(
    name="my_roberta",
    forms=("classification",),
    lora_targets=("query", "value"),
    modeling="toy_package.modeling",
)
