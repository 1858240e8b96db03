"""The baseline: nothing is converted."""
