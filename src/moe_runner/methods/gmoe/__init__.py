"""GMoE: copies of an FFN, a learned cosine router."""
