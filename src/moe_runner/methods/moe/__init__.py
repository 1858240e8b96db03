"""Sparse upcycling: copies of an FFN, a noisy top-k router; HyperMoE's baseline."""
