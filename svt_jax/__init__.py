"""Singular value transformations for transformer encoders in JAX."""

from svt_jax.models.config import SVTConfig
from svt_jax.models.hf import load_classifier, load_encoder
from svt_jax.spectral.functions import (
    Identity,
    SoftDecay,
    SpectralFunction,
    get_function,
    register_function,
    static_field,
)
from svt_jax.spectral.transform import svt

__all__ = [
    "Identity",
    "SVTConfig",
    "SoftDecay",
    "SpectralFunction",
    "get_function",
    "load_classifier",
    "load_encoder",
    "register_function",
    "static_field",
    "svt",
]
