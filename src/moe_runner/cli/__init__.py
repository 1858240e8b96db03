"""The command line: what is checked before Hydra runs, where jobs run, how a command ends."""
