"""The calls to LAPACK: no hang, no gather."""

import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import svt_jax

SIAMESE = """
import os
os.environ.pop("PJRT_NPROC", None)
import jax
jax.config.update("jax_num_cpu_devices", {devices})
import jax.numpy as jnp, numpy as np, svt_jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh(({devices},), ("data",), axis_types=(AxisType.Auto,))
batch = NamedSharding(mesh, PartitionSpec("data"))
x = jax.device_put(np.random.default_rng(0).normal(size=(3, 16, 64, 96)).astype(np.float32), NamedSharding(mesh, PartitionSpec(None, "data")))

@jax.jit
def step(weights, x):
    def loss(weights):  # three branches that do not wait for each other
        branch = lambda part: svt_jax.svt(part @ weights, svt_jax.SoftDecay(), solver="{solver}").mean(1)
        first, second, third = (branch(part) for part in x)
        return jnp.sum((first - second) ** 2) - jnp.sum((first - third) ** 2)
    return weights - 1e-3 * jax.grad(loss)(weights)

with jax.set_mesh(mesh):
    weights = jnp.eye(96)
    for _ in range(10):
        weights = step(weights, x)
    assert np.isfinite(np.asarray(weights)).all()
print("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("solver", ["svd", "gram", "gram64"])
def test_branches_in_flight_together_do_not_hang(devices, solver):
    code = textwrap.dedent(SIAMESE.format(devices=devices, solver=solver))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "finished", done.stderr


@pytest.mark.parametrize("solver", ["gram", "gram64"])
def test_rows_of_zeros_at_the_end_change_neither_value_nor_gradient(solver):
    """`gram`, `gram64` and the singular values leave them out of the eigenproblem, also of a square matrix."""
    length = 18
    rng = np.random.default_rng(0)
    x = rng.normal(size=(length, length, length)).astype(np.float32) + 2 * np.eye(length, dtype=np.float32)
    x = np.where(np.arange(length)[:, None] <= np.arange(length)[:, None, None], x, 0)  # n-th: n + 1 rows
    weights = rng.normal(size=x.shape).astype(np.float32)
    function = svt_jax.SoftDecay(-0.5, centered=True)

    @functools.partial(jax.jit, static_argnums=1)
    def both(x, solver):
        return jax.value_and_grad(lambda x: jnp.vdot(svt_jax.svt(x, function, solver=solver), weights))(x)

    for got, expected in zip(both(x, solver), both(x, "svd"), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(svt_jax.measures.singular_values(x), np.linalg.svd(x, compute_uv=False), atol=2e-5)


@pytest.mark.parametrize(
    "solver", ["gram", *(pytest.param(name, marks=pytest.mark.slow) for name in ("svd", "gram64"))]
)
def test_a_sharded_batch_is_not_gathered_forward_or_backward(solver):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.device_put(np.random.default_rng(0).normal(size=(16, 16, 20)).astype(np.float32), sharding)
    loss = lambda x: jnp.sum(svt_jax.svt(x, svt_jax.SoftDecay(), solver=solver) ** 2, axis=(1, 2))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x: jax.vjp(loss, x)[1](jnp.ones(16)), out_shardings=(sharding,)).lower(x).compile()
        hlo = compiled.as_text()
        (sharded,) = compiled(x)
    assert "all-gather" not in hlo
    assert "all-to-all" not in hlo
    (plain,) = jax.vjp(loss, jnp.asarray(np.asarray(x)))[1](jnp.ones(16))
    np.testing.assert_allclose(sharded, plain, atol=1e-5 * float(jnp.max(jnp.abs(plain))))


def test_linear_algebra_runs_with_one_blas_thread_and_numpy_is_left_alone():
    code = """
import jax.numpy as jnp, numpy as np, svt_jax
from threadpoolctl import threadpool_limits, threadpool_info
threadpool_limits(2)
svt_jax.svt(jnp.ones((2, 3)), svt_jax.SoftDecay())
for library in threadpool_info():
    if library["internal_api"] == "openblas":
        print(library["filepath"].split("/")[-2], library["num_threads"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert dict(line.split() for line in done.stdout.splitlines()) == {"scipy.libs": "1", "numpy.libs": "2"}, (
        done.stderr
    )
