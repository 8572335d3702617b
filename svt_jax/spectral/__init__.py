"""Singular value transformations as pure functions on arrays: no model, no config, no file."""

from svt_jax.spectral import measures as measures
