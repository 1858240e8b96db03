"""What a user may set: dataclasses with ranges on their fields, and how a config becomes them.

Nothing here imports torch, so that `--help`, `--cfg job` and `dry_run=true` stay quick. Problems
are collected, never raised one by one: a user sees them all.
"""
