"""Singular value transformations for transformer encoders in JAX."""

from svt_jax.analysis.compare import compare
from svt_jax.evaluation.embed import embed
from svt_jax.models.config import SVTConfig
from svt_jax.models.export import export_hf
from svt_jax.models.hf import load_classifier, load_encoder
from svt_jax.models.svt_layer import SVTLayer
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
)
from svt_jax.spectral.peers import ContraNorm, TokenAllButTheTop, TokenOperation, TokenWhitening
from svt_jax.spectral.registry import get_function, register_function
from svt_jax.spectral.transform import svt, svt_and_failures

__all__ = [
    "AllButTheTop",
    "Average",
    "ContraNorm",
    "Identity",
    "Linear",
    "LogShift",
    "SVTConfig",
    "SVTLayer",
    "SoftDecay",
    "SoftExponential",
    "SpectralFunction",
    "SpectralMap",
    "TokenAllButTheTop",
    "TokenOperation",
    "TokenWhitening",
    "Whitening",
    "compare",
    "embed",
    "export_hf",
    "get_function",
    "load_classifier",
    "load_encoder",
    "measures",
    "register_function",
    "static_field",
    "svt",
    "svt_and_failures",
]
