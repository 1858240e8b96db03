"""The forms of a task: how a backbone reads it, answers it and is scored. A name in `FORMS`."""

from moe_runner.options.task import FormName
from moe_runner.training.forms.base import Form
from moe_runner.training.forms.classification import Classification
from moe_runner.training.forms.domain_generalisation import DomainGeneralisation
from moe_runner.training.forms.instruct import Instruct
from moe_runner.training.forms.language_modelling import LanguageModelling
from moe_runner.training.forms.text_to_text import TextToText

__all__ = ["FORMS", "Form"]

FORMS: dict[FormName, type[Form]] = {
    "classification": Classification,
    "text_to_text": TextToText,
    "language_modelling": LanguageModelling,
    "domain_generalisation": DomainGeneralisation,
    "instruct": Instruct,
}
