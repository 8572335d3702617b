"""A module a command: its `options()`, and `run(arguments)`, which prints the result."""
