"""HyperMoE: sparse upcycling with a HyperExpert."""
