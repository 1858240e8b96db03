"""The method `toy`."""
