"""The mesh and the shardings: what fits, and what is an error with both numbers."""

import jax
import pytest

from svt_jax.models.config import SVTConfig
from svt_jax.training import assemble
from svt_jax.training.config import MeshConfig, OptimConfig
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.sharding import make_mesh, optimizer_shardings, parameter_shardings
from svt_jax.training.step import split_model


def parameters():
    return split_model(
        assemble.random_classifier(assemble.DEMO_ENCODER, SVTConfig("soft_decay"), 2, dtype="float32", seed=0)
    )[1]


def test_the_mesh_takes_all_devices():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="data=2, fsdp=1, tensor=1 does not fit 8 devices"):
        make_mesh(MeshConfig(data=2))


def test_a_dimension_that_does_not_divide_is_named_with_both_numbers():
    params = jax.eval_shape(parameters)
    mesh = jax.make_mesh(
        (1, 1, 5), ("data", "fsdp", "tensor"), devices=jax.devices()[:5], axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    with pytest.raises(
        ValueError, match="layers/0/attention/query/kernel: 96 does not divide over 5 devices.*layers/1/up/kernel: 256"
    ):
        parameter_shardings(params, mesh)


def test_moments_are_sharded_like_their_parameters():
    params = jax.eval_shape(parameters)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(params, mesh)
    state = optimizer_shardings(make_optimizer(OptimConfig(), 10), params, shardings, mesh)
    specs = {jax.tree_util.keystr(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    queries = {spec for path, spec in specs.items() if "['query']['kernel']" in path}
    assert queries == {jax.sharding.PartitionSpec("fsdp", "tensor")}
    assert {spec for path, spec in specs.items() if "count" in path} == {jax.sharding.PartitionSpec()}
