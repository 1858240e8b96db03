"""Pretrained backbones: where their weights are, how they load, and their FFN sites by family."""
