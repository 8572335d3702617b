"""Singular value transformations as pure functions on arrays, and maps fitted to sets of embeddings: no model, no config."""
