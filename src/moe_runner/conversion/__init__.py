"""Conversion: the FFNs of a model become experts, in place; merging back, saving and loading."""
