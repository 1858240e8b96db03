"""Methods: how the FFN sites of a backbone are converted, and merged back."""

from moe_runner.methods.conversion import Conversion, conversion_of, convert, merge
from moe_runner.methods.saving import from_pretrained, save_pretrained

__all__ = [
    "Conversion",
    "convert",
    "conversion_of",
    "from_pretrained",
    "merge",
    "save_pretrained",
]
