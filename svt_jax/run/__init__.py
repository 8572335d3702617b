"""One run's parts: config, command line, task, model, checkpoints, folder and processes."""
