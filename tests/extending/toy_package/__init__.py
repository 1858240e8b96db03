"""A package that adds a method, a family and a suite to moe-runner."""
