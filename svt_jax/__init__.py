"""Singular value transformations for transformer encoders in JAX."""

from svt_jax.models.config import SVTConfig
from svt_jax.models.export import export_hf
from svt_jax.models.hf import load_classifier, load_encoder
from svt_jax.spectral import measures
from svt_jax.spectral.base import SpectralFunction, static_field
from svt_jax.spectral.corpus import AllButTheTop, SpectralMap, Whitening
from svt_jax.spectral.functions import (
    Average,
    Identity,
    Linear,
    LogShift,
    SoftDecay,
    SoftExponential,
    get_function,
    register_function,
)
from svt_jax.spectral.transform import svt

__all__ = [
    "AllButTheTop",
    "Average",
    "Identity",
    "Linear",
    "LogShift",
    "SVTConfig",
    "SoftDecay",
    "SoftExponential",
    "SpectralFunction",
    "SpectralMap",
    "Whitening",
    "export_hf",
    "get_function",
    "load_classifier",
    "load_encoder",
    "measures",
    "register_function",
    "static_field",
    "svt",
]
