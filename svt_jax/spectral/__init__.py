"""Singular value transformations as pure functions on arrays: no model, no file, no config."""
