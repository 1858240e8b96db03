"""Sparse upcycling with plain adapters: HyperMoE's parameter-matched control."""
