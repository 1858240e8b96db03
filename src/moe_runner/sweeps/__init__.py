"""From settings to the runs that they mean."""
