"""Fit and evaluate on the Hugging Face Trainer."""
