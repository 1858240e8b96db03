"""Runs on disk: what identifies one, its folder, its lock and state, and the store of them all."""
