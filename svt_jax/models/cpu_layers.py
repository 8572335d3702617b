"""What only XLA's CPU backend needs: forms of plain operations that it compiles to faster programs.

Each says its reason. `python -m benchmarks.cpu_layers` measures what each gains in a training step. Elsewhere they cost
nothing. All work under jit, vmap, grad and their compositions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def repeated(row: Array, times: int) -> Array:
    """[F] -> [times, F], for a bias or a scale over rows.

    Its transpose, the sums of columns, is a product with ones, which takes a tenth of the time of XLA's sum on CPU.
    """
    return jnp.broadcast_to(row, (times, *row.shape))


@repeated.defjvp
def _repeated_jvp(times: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ones = jnp.ones((times, 1), tangents[0].dtype)
    return repeated(primals[0], times), jnp.matmul(ones, tangents[0][None], precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def kept(x: Array, number: Array) -> Array:
    """Returns x, as an array of its own where a derivative is taken.

    XLA on CPU would compute x again in each place that uses it, and so, in the backward pass, all residuals and
    norms of the layers below it. XLA removes an optimization_barrier on CPU. It cannot remove a branch on a runtime
    value, so we branch on isnan(number), which is never true in practice; `number` is a parameter that x is multiplied
    with.
    """
    return x


@kept.defjvp
def _kept_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    def on_cpu(x: Array, number: Array) -> Array:
        out: Array = jax.lax.cond(jnp.isnan(number), lambda x: x * number, lambda x: x, x)
        return out

    out: Array = jax.lax.platform_dependent(*primals, cpu=on_cpu, default=lambda x, number: x)
    return out, tangents[0]
