"""The classes of `my_roberta`, announced to transformers when this module is imported."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)


class MyRobertaConfig(RobertaConfig):
    """RoBERTa's, with another `model_type` in config.json."""

    model_type = "my_roberta"


class MyRobertaForSequenceClassification(RobertaForSequenceClassification):
    """RoBERTa's."""

    config_class = MyRobertaConfig


AutoConfig.register("my_roberta", MyRobertaConfig)
AutoModelForSequenceClassification.register(MyRobertaConfig, MyRobertaForSequenceClassification)
