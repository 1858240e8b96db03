"""Hydra's launcher of moe-run for a Ray cluster, see `launcher`."""
