"""Text to arrays: tasks, files, the embedded demo task, batches. Knows no model."""
