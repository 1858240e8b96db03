"""hydra/launcher=slurm: submitting an array of jobs, watching it, and what happens within a job."""
