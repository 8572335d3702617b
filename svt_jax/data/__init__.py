"""Text to arrays: tasks, files, the embedded demo task, tokens, batches. It imports no model code."""
