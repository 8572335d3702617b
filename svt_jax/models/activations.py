"""Activations by their name in a Hugging Face config."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from svt_jax.spectral.base import work_dtype

Array = jax.Array


def _exact_gelu(x: Array) -> Array:
    """x Phi(x) with Phi(x) = 1/2 + 1/2 erf(x / sqrt 2), at least in float32 (Hendrycks and Gimpel, arXiv 1606.08415).

    PyTorch does the same. jax.nn.gelu uses erfc, which also keeps relative digits far to the left, where the value is
    next to nothing, and costs a branch for each entry.
    """
    wide = x.astype(work_dtype(x.dtype))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_python": _exact_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""By `hidden_act`. `gelu` and `gelu_python` are exact (erf); the other GELUs are one tanh form."""
