"""The suites: each module here is one, by its name; see `tasks.suite`."""
