"""Second moments: no loss of digits for any rows and any sharding; memory; threads."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from threadpoolctl import threadpool_info, threadpool_limits

from svt_jax.embeddings import moments as moments_file
from svt_jax.embeddings.moments import moments, one_blas_thread

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(5000, 24)) * np.geomspace(5, 0.2, 24) + 1.0).astype(np.float32)
EXACT = ROWS.astype(np.float64).T @ ROWS.astype(np.float64)


def sharded(rows):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))


def relative_error(gram, exact):
    return np.abs(gram - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(("condition", "mean"), [(1e3, 0.0), (1e4, 0.0), (1e5, 0.0), (1e3, 1.0), (1e2, 1e3)])
def test_small_singular_values_are_not_lost(condition, mean):
    """The error of sigma_i^2 is float64's rounding of sigma_1^2, as LAPACK bounds it; float32's is 5e8 times larger."""
    q = np.linalg.qr(RNG.normal(size=(64, 64)))[0]
    rows = ((RNG.normal(size=(20_000, 64)) * np.geomspace(1, 1 / condition, 64)) @ q + mean).astype(np.float32)
    gram, _ = moments(rows)
    exact = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    errors = np.abs(np.linalg.eigvalsh(gram)[::-1] - exact**2)
    assert errors.max() < len(exact) * np.finfo(np.float64).eps * exact[0] ** 2


def test_a_million_rows_lose_nothing():
    rows = (RNG.normal(size=(1_000_000, 4)) + 3.0).astype(np.float32)
    gram, total = moments(rows)
    columns = rows.T.astype(np.longdouble)
    exact = np.array([[(a * b).sum() for a in columns] for b in columns])
    assert relative_error(gram, exact) < 1e-14
    assert relative_error(total, columns.sum(axis=1)) < 1e-14


@pytest.mark.parametrize(
    "form",
    [
        jnp.asarray,
        sharded,
        np.asfortranarray,
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: rows.astype(np.float64),
        lambda rows: rows.tolist(),
    ],
    ids=["jax", "sharded", "fortran", "strided", "float64", "list"],
)
def test_the_same_rows_in_any_form(form):
    gram, total = moments(form(ROWS))
    assert relative_error(gram, EXACT) < 1e-14
    np.testing.assert_allclose(total, ROWS.sum(axis=0, dtype=np.float64), rtol=1e-13)


def test_bfloat16_rows_are_taken_as_they_are():
    rows = ROWS.astype(ml_dtypes.bfloat16)
    exact = rows.astype(np.float64).T @ rows.astype(np.float64)
    assert relative_error(moments(rows)[0], exact) < 1e-14
    assert relative_error(moments(jnp.asarray(rows))[0], exact) < 1e-14


def test_the_gram_matrix_is_exactly_symmetric():
    gram, _ = moments(ROWS)
    assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("step", [5000, 700])
def test_the_way_of_accelerators_gives_the_same(step):
    gram, total = moments_file._by_xla(ROWS, step)
    assert gram.dtype == np.float64
    assert relative_error(gram, EXACT) < 1e-14
    np.testing.assert_allclose(total, ROWS.sum(axis=0, dtype=np.float64), rtol=1e-13)


def test_sharded_rows_stay_where_they_are(monkeypatch):
    """One product of all rows; only D x D numbers cross devices."""
    seen = []
    actual = moments_file._product
    monkeypatch.setattr(moments_file, "_product", lambda rows: (seen.append(rows), actual(rows))[1])
    moments(sharded(ROWS))
    assert [(rows.shape, rows.sharding.spec) for rows in seen] == [((5000, 24), PartitionSpec("data"))]
    with jax.enable_x64(True):
        compiled = actual.lower(seen[0]).compile().as_text()
    assert "all-reduce(" in compiled
    assert "all-gather" not in compiled


def test_few_rows_or_none():
    assert np.array_equal(moments(np.ones((1, 3), np.float32))[0], np.ones((3, 3)))
    gram, total = moments(np.ones((0, 3), np.float32))
    assert np.array_equal(gram, np.zeros((3, 3)))
    assert np.array_equal(total, np.zeros(3))


def test_rows_that_are_not_finite_show_and_do_not_warn():
    rows = np.repeat(ROWS, 2, axis=0)
    rows[0, 0], rows[-1, 0] = np.inf, -np.inf
    assert not np.isfinite(moments(rows)[0]).all()


def test_blas_has_its_threads_back_afterwards():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        assert set(threads()) == {2}
        with one_blas_thread():
            assert set(threads()) == {1}
        moments(ROWS)
        assert set(threads()) == {2}


def test_memory_does_not_grow_with_the_rows():
    """40 more batches of 4 MiB after a few, then one matrix of 100 MiB: they need no more memory."""
    script = """
import numpy as np
import svt_jax
from benchmarks.corpus import peak_memory_mib, synthetic
fitted = svt_jax.Whitening()
for batch in synthetic(5 * 4096, 256, 4096):
    fitted.partial_fit(batch)
after_five = peak_memory_mib()
for batch in synthetic(40 * 4096, 256, 4096):
    fitted.partial_fit(batch)
print(peak_memory_mib() - after_five)
rows = np.ones((25 * 4096, 256), np.float32)
with_rows = peak_memory_mib()
fitted.partial_fit(rows)
print(peak_memory_mib() - with_rows)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    streamed, at_once = map(float, done.stdout.split())
    assert streamed < 16
    assert at_once < 16


@pytest.mark.slow
def test_a_million_rows_of_768_fit_in_two_gib():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.corpus", "--rows", "1000000", "--pairs", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "whole fit: 1000000 x 768 float32" in done.stdout
    assert float(done.stdout.split("peak memory ")[1].split()[0]) < 2048
