"""The measure of a transformation's cost: a step that computes all that a transformation needs, and transforms nothing.

A plain encoder is no such measure: without an SVT, a classifier's last layer computes only the first token.
"""

from __future__ import annotations

import jax

from svt_jax import TokenOperation, register_function
from svt_jax.models.svt_config import SVTConfig
from svt_jax.spectral.base import Solver


class PassedOn(TokenOperation):
    """Returns its input."""

    def operate(self, x: jax.Array, mask: jax.Array, solver: Solver) -> jax.Array:
        return x


register_function("passed_on", PassedOn)
PASSED_ON = SVTConfig("passed_on")
"""For the last layer, in a transformation's place."""
