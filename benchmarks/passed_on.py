"""What a transformation's cost is measured by: a step that computes all that one needs, and transforms nothing.

A plain encoder is no measure for it: without an SVT in it, a classifier's last layer computes the first token alone.
"""

from __future__ import annotations

import jax

from svt_jax import TokenOperation, register_function
from svt_jax.models.config import SVTConfig
from svt_jax.spectral.base import Solver


class PassedOn(TokenOperation):
    """Gives what it gets."""

    def operate(self, x: jax.Array, mask: jax.Array, solver: Solver) -> jax.Array:
        return x


register_function("passed_on", PassedOn)
PASSED_ON = SVTConfig("passed_on")
"""For the last layer, in a transformation's place."""
