"""Tables and plots from results; builds no model."""
