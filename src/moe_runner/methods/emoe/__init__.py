"""EMoE: clusters of neurons, avg-k gating."""
