"""Optimizer: schedule values, decay only on matrices, alpha at its own rate, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from svt_jax.models.families import FAMILIES
from svt_jax.models.slot import SVTParam
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import OptimConfig
from svt_jax.training.optimizer import learning_rate_schedule, make_optimizer, named_paths, parameter_groups
from tests.models import tiny


class Toy(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(2, rngs=nnx.Rngs(0))
        self.alpha = SVTParam(jnp.float32(0.5))


def values(state):
    return {"/".join(map(str, k)): np.asarray(v.get_value()) for k, v in nnx.to_flat_state(state)}


def updated(config, gradient, steps=1):
    params = nnx.state(Toy())
    before = values(params)
    optimizer = make_optimizer(config, num_steps=10)
    state = optimizer.init(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return before, values(params)


def test_with_zero_gradient_only_matrices_decay():
    before, after = updated(OptimConfig(learning_rate=0.1, weight_decay=0.5), gradient=0.0)
    np.testing.assert_allclose(after["dense/kernel"], before["dense/kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)
    for name in ("dense/bias", "norm/scale", "norm/bias", "alpha"):
        assert np.array_equal(after[name], before[name]), name


def test_alpha_moves_at_its_own_rate():
    before, after = updated(OptimConfig(learning_rate=0.1, svt_learning_rate=0.3), gradient=1.0)
    # Adam's first step has the size of the rate, against the gradient
    np.testing.assert_allclose(after["alpha"], before["alpha"] - 0.3, rtol=1e-5)
    np.testing.assert_allclose(after["norm/bias"], before["norm/bias"] - 0.1, rtol=1e-5)
    before, after = updated(OptimConfig(learning_rate=0.1), gradient=1.0)
    np.testing.assert_allclose(after["alpha"], before["alpha"] - 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("cosine", {0: 0.0, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("constant", {0: 0.0, 2: 1.0, 10: 1.0}),
    ],
)
def test_schedule_has_its_values_at_first_middle_and_last_step(schedule, expected):
    rate = learning_rate_schedule(OptimConfig(learning_rate=1.0, warmup_ratio=0.2, schedule=schedule), num_steps=10)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_the_rate_in_force_is_the_schedules():
    before, after = updated(OptimConfig(learning_rate=0.1), gradient=1.0, steps=3)
    np.testing.assert_allclose(after["norm/bias"], before["norm/bias"] - 0.1 * (1.0 + 0.9 + 0.8), rtol=1e-4)


def test_clipping_bounds_the_global_norm():
    params = nnx.state(Toy())
    optimizer = make_optimizer(OptimConfig(grad_clip=1.0), num_steps=10)
    clipped, _ = optax.clip_by_global_norm(1.0).update(jax.tree.map(lambda p: jnp.full_like(p, 9.0), params), None)
    assert float(optax.tree.norm(clipped)) == pytest.approx(1.0, rel=1e-5)
    _, state = optimizer.update(jax.tree.map(lambda p: jnp.full_like(p, 9.0), params), optimizer.init(params), params)
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path)]
    assert float(optax.tree.norm(moments)) == pytest.approx(0.1, rel=1e-4)  # (1 - beta_1) times the clipped gradient


def test_clipping_leaves_a_small_gradient_as_it_is():
    for name, value in updated(OptimConfig(learning_rate=0.1, grad_clip=100.0), gradient=0.5, steps=3)[1].items():
        assert np.array_equal(value, updated(OptimConfig(learning_rate=0.1), gradient=0.5, steps=3)[1][name]), name


def test_alpha_with_rate_zero_stays():
    before, after = updated(OptimConfig(svt_learning_rate=0.0, weight_decay=0.5), gradient=1.0, steps=3)
    assert np.array_equal(after["alpha"], before["alpha"])
    assert not np.array_equal(after["norm/bias"], before["norm/bias"])


def reference_adamw(gradients, value, rates, decay):
    """Algorithm 2 of arXiv 1711.05101 in float64, where the rate also multiplies the decay, as in implementations."""
    m = v = np.zeros_like(value)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        value = value - rate * (step + decay * value)
    return value


def test_several_steps_are_adamw_of_the_clipped_gradients_at_each_groups_rate():
    """Warm-up, clipping, decay and alpha's rate together, against float64."""
    config = OptimConfig(learning_rate=0.1, svt_learning_rate=0.3, weight_decay=0.2, warmup_ratio=0.2, grad_clip=1.0)
    rng = np.random.default_rng(0)
    params = nnx.state(Toy())
    start = {name: value.astype(np.float64) for name, value in values(params).items()}
    gradients = [{name: rng.normal(size=value.shape) for name, value in start.items()} for _ in range(6)]
    optimizer = make_optimizer(config, num_steps=10)
    state = optimizer.init(params)
    for step in gradients:
        leaves = [jnp.asarray(step[name], jnp.float32) for name in named_paths(params)]
        updates, state = optimizer.update(jax.tree.unflatten(jax.tree.structure(params), leaves), state, params)
        params = optax.apply_updates(params, updates)
    norms = [np.sqrt(sum(np.sum(g**2) for g in step.values())) for step in gradients]
    assert min(norms) > 1.0
    shape = np.array([0.0, 0.5, 1.0, 0.875, 0.75, 0.625])  # two steps up, eight down
    for name, value in values(params).items():
        clipped = [step[name] / norm for step, norm in zip(gradients, norms, strict=True)]
        rates = shape * (0.3 if name == "alpha" else 0.1)
        expected = reference_adamw(clipped, start[name], rates, 0.2 if name == "dense/kernel" else 0.0)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matrices_and_embeddings_decay_and_nothing_else(family):
    model = nnx.eval_shape(lambda: tiny.classifier(family, SVTConfig("soft_decay")))
    groups = dict(
        zip(named_paths(params := nnx.state(model, nnx.Param)), jax.tree.leaves(parameter_groups(params)), strict=True)
    )
    ranks = dict(zip(named_paths(params), (leaf.ndim for leaf in jax.tree.leaves(params)), strict=True))
    assert {name for name, group in groups.items() if group == "svt"} == {name for name in groups if "svt" in name}
    assert set(groups.values()) == {"svt", "plain", "decayed"}
    for name, group in groups.items():
        if group != "svt":
            # an attention bias may have a dimension for heads: decide by name, not only by rank
            is_vector = name.endswith(("bias", "scale"))
            assert (group == "plain") == is_vector, name
            assert is_vector or ranks[name] >= 2, name


def test_paths_are_in_the_order_of_the_leaves():
    params = nnx.state(Toy())
    shapes = {name: value.shape for name, value in values(params).items()}
    assert [shapes[name] for name in named_paths(params)] == [leaf.shape for leaf in jax.tree.leaves(params)]
