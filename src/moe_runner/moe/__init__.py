"""Building blocks on tensors: clustering, routing, experts, the layer. Knows no config."""
