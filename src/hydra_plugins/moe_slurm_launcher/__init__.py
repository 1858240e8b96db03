"""Hydra's launcher of moe-run for a Slurm cluster, see `launcher`."""
