"""Synthetic, offline miniatures of published task suites."""
