"""EMoE-learn: clusters of neurons, a learned cosine router."""
