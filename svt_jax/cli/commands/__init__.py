"""One module for each command: its `options()`, and `run(arguments)`, which prints the result."""
