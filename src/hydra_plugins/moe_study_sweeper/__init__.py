"""Hydra's sweeper of moe-run, see `sweeper`."""
