"""The probe against a float64 reference in NumPy and SciPy, on a model, over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.probe import BINS, MEASURES, Probe, measure
from svt_jax.mesh import make_mesh
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER, TaskModel, random_classifier

RNG = np.random.default_rng(0)
LENGTHS = np.array([9, 4, 7, 9, 5], np.int32)
TOKENS = Tokens.of_padded(RNG.integers(5, 30, (5, 9)).astype(np.int32), np.zeros((5, 9), np.int32), LENGTHS, None, 0)


def reference(x):
    """The measures of one example's tokens [n, D], in float64."""
    x = np.asarray(x, np.float64)
    sigma = np.linalg.svd(x, compute_uv=False)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    share = sigma / sigma.sum()
    values = [
        stats.skew(sigma),
        np.median(sigma / sigma[0]),
        cosines[~np.eye(len(x), dtype=bool)].mean(),
        cosines[0].mean(),
        sigma[0] ** 2 / (sigma**2).sum(),
        (sigma[:3] ** 2).sum() / (sigma**2).sum(),
        np.exp(-(share * np.log(share)).sum()),
    ]
    histogram = np.histogram(sigma / sigma[0], BINS, (0, 1))[0] / len(sigma)
    return dict(zip(MEASURES, values, strict=True)), histogram


def mean_reference(examples):
    measured = [reference(x) for x in examples]
    means = {name: np.mean([values[name] for values, _ in measured]) for name in MEASURES}
    return means, np.mean([histogram for _, histogram in measured], axis=0)


def assert_is_reference(found, examples):
    means, histogram = mean_reference(examples)
    for name in MEASURES:
        assert float(found[name]) == pytest.approx(means[name], rel=2e-5, abs=2e-6), name
    # a value on the edge of two bins may fall into either
    np.testing.assert_allclose(np.cumsum(found["histogram"]), np.cumsum(histogram), atol=0.03)
    assert np.sum(found["histogram"]) == pytest.approx(1.0, abs=1e-4)


def test_measures_are_means_of_the_float64_reference_over_real_tokens_and_rows():
    x = RNG.normal(size=(4, 7, 12)) + 0.5
    lengths, weights = [7, 5, 6, 7], np.array([1, 1, 1, 0], np.float32)
    mask = np.arange(7) < np.array(lengths)[:, None]
    x[~mask] = 1e3  # padding may hold anything
    found = measure(jnp.asarray(x, jnp.float32), mask, weights)
    assert_is_reference(found, [x[n, : lengths[n]] for n in range(3)])


def test_more_tokens_than_features_have_as_many_singular_values_as_features():
    x = RNG.normal(size=(2, 9, 5)) + 0.5
    assert_is_reference(measure(jnp.asarray(x, jnp.float32), np.ones((2, 9)), np.ones(2)), list(x))


@pytest.fixture(scope="module")
def model():
    svt = SVTConfig("soft_decay", layers=[1], placement="before_norm", alpha=-0.4)
    return random_classifier(DEMO_ENCODER, svt, 2, dtype="float32", seed=0)


@pytest.fixture(scope="module")
def reading(model):
    """A reading of five examples over eight devices."""
    whole = TaskModel.of(model, make_mesh())
    return Probe(whole, TOKENS).read(whole)


def test_a_reading_holds_every_layer_and_what_the_svt_gets_and_gives(model, reading):
    mask = np.arange(9) < LENGTHS[:, None]
    out = model.encoder(TOKENS.ids, mask, output_hidden_states=True, output_svt_states=True)
    (before, after) = out.svt_states[1]
    arrays = [*out.hidden_states, before, after]
    places = [(state["layer"], state["state"]) for state in reading["states"]]
    assert places == [(None, "output"), (0, "output"), (1, "output"), (1, "svt_input"), (1, "svt_output")]
    for state, x in zip(reading["states"], arrays, strict=True):
        assert_is_reference(state, [np.asarray(x)[n, :length] for n, length in enumerate(LENGTHS)])
    assert reading["examples"] == 5
    assert reading["alpha"] == {"1": pytest.approx(-0.4)}
    assert reading["svt"] == {"1": {"alpha": pytest.approx(-0.4)}}


def test_soft_decay_flattens_what_it_gets(reading):
    before, after = reading["states"][3:]
    assert after["median_ratio"] > before["median_ratio"]
    assert after["skewness"] < before["skewness"]
    assert after["effective_rank"] > before["effective_rank"]


def test_the_sample_is_spread_over_the_split_and_its_programs_compile_once(model):
    count = 1000
    ids = np.tile(TOKENS.ids[:1], (count, 1))
    lengths = np.full(count, 9, np.int32)
    lengths[-1] = 3  # the last one is in the sample
    encoder = TaskModel.of(model.encoder, make_mesh())
    probe = Probe(encoder, Tokens.of_padded(ids, np.zeros_like(ids), lengths, None, 0))
    first = probe.read(encoder)
    programs = [jitted._cache_size() for jitted in (probe._forward, probe._measure)]
    second = probe.read(dataclasses.replace(encoder, params=jax.tree.map(lambda p: p * 1.01, encoder.params)))
    assert (first["examples"], second["examples"]) == (64, 64)
    assert first["states"] != second["states"]
    assert [jitted._cache_size() for jitted in (probe._forward, probe._measure)] == programs
    assert programs[0] == 1
    assert np.sum(probe._batch["segment"] > 0) == 63 * 9 + 3
