"""Sparse upcycling with one more expert that every token passes."""
