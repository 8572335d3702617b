"""The mesh and the shardings: what fits, errors with both numbers, and the committed spec of every parameter."""

import dataclasses
import functools
import gc
import json
import math
from pathlib import Path

import jax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.mesh import MESH_AXES, make_mesh, parameter_shardings
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.export import export_hf
from svt_jax.models.families import FAMILIES
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from svt_jax.run.task_model import DEMO_ENCODER, TaskModel, random_classifier
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.step import state_shardings
from tests.models import tiny

GOLDEN = Path(__file__).parent / "golden_shardings.json"
MESHES = {
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(data=1, fsdp=8),
    "data=2 fsdp=2 tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor=4": MeshConfig(data=1, tensor=4),
}
SVT = SVTConfig("soft_decay")
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}


def mesh_of(config: MeshConfig):
    size = config.data * config.fsdp * config.tensor
    return make_mesh(**dataclasses.asdict(config), devices=jax.devices()[:size])


@functools.cache
def parameters(family="bert", svt=SVT):
    """An abstract model on one device."""
    config = EncoderConfig.from_hf(tiny.fields(family, **SIZES))
    make = functools.partial(random_classifier, config, tiny.fitting(family, svt), 2, dtype="float32", seed=0)
    return TaskModel.of(nnx.eval_shape(make), mesh_of(MeshConfig(data=1)))


def specs(config: MeshConfig) -> dict[str, dict[str, str]]:
    """For every parameter of every family: its spec, and the shape of a device's shard."""
    found = {}
    mesh = mesh_of(config)
    for family in FAMILIES:
        params = parameters(family).params
        shapes = {path: variable.get_value().shape for path, variable in nnx.to_flat_state(params)}
        found[family] = {
            "/".join(map(str, path)): f"{tuple(v.get_value().spec)} {list(v.get_value().shard_shape(shapes[path]))}"
            for path, v in nnx.to_flat_state(parameter_shardings(params, mesh))
        }
    return found


def test_the_mesh_takes_all_devices():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(make_mesh().axis_types) == {jax.sharding.AxisType.Auto}
    with pytest.raises(ValueError, match="data=2, fsdp=1, tensor=1 does not fit 8 devices"):
        make_mesh(data=2)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_parameter_has_the_committed_spec(mesh):
    """After an intended change, `python -m tests.test_mesh` writes the file again."""
    assert specs(MESHES[mesh]) == json.loads(GOLDEN.read_text())[mesh]


def test_no_mesh_axis_divides_two_dimensions_of_a_parameter():
    for family in FAMILIES:
        for path, variable in nnx.to_flat_state(parameters(family).params):
            axes = [axis for name in variable.logical_axes for axis in MESH_AXES[name]]
            assert len(axes) == len(set(axes)), path


def test_what_does_not_divide_is_named_with_both_numbers_all_at_once():
    params = parameters().params
    mesh = make_mesh(data=1, tensor=3, devices=jax.devices()[:3])
    with pytest.raises(ValueError) as error:
        parameter_shardings(params, mesh)
    message = str(error.value)
    for problem in (
        "encoder/embeddings/word/embedding: 32 does not divide over 3 devices (mesh tensor x fsdp)",
        "encoder/layers/0/attention/query/kernel: 4 heads do not divide over 3 devices (mesh tensor)",
        "encoder/layers/0/down/kernel: 64 does not divide over 3 devices (mesh tensor)",
        "encoder/pooler/dense/kernel: 32 does not divide over 3 devices (mesh tensor)",
    ):
        assert problem in message
    assert "norm" not in message


def test_heads_must_divide_even_where_the_dimension_does():
    params = parameters().params
    with pytest.raises(ValueError, match="query/bias: 4 heads do not divide over 8 devices"):  # its 32 entries would
        parameter_shardings(params, make_mesh(data=1, tensor=8))


def test_a_parameter_without_known_axes_is_an_error_and_not_replicated():
    mesh = make_mesh()
    with pytest.raises(ValueError, match=r"kernel \[2, 3\] has the logical axes \(\), one of embed"):
        parameter_shardings(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), mesh)
    misspelt = nnx.State({"kernel": nnx.Param(jax.numpy.zeros((2, 3)), logical_axes=("embed", "mpl"))})
    with pytest.raises(ValueError, match=r"\('embed', 'mpl'\)"):
        parameter_shardings(misspelt, mesh)


def test_moments_are_sharded_like_their_parameters():
    model = dataclasses.replace(parameters(), mesh=mesh_of(MeshConfig(2, 2, 2)))
    shardings = state_shardings(model, make_optimizer(OptimConfig(), 10))
    state = jax.tree_util.tree_leaves_with_path(shardings.optimizer)
    found = {jax.tree_util.keystr(path): leaf.spec for path, leaf in state}
    queries = [spec for path, spec in found.items() if "['query']['kernel']" in path]
    assert queries == [PartitionSpec("fsdp", "tensor")] * 2  # first and second moments
    assert {spec for path, spec in found.items() if "count" in path} == {PartitionSpec()}


def test_a_constant_of_the_svt_is_replicated():
    model = parameters(svt=SVTConfig("soft_decay", learnable=False))
    model = dataclasses.replace(model, mesh=mesh_of(MeshConfig(2, 2, 2)))
    shardings = state_shardings(model, make_optimizer(OptimConfig(), 10))
    (constant,) = jax.tree.leaves(shardings.constants)
    assert constant.is_fully_replicated


def bytes_on_each(devices) -> list[int]:
    gc.collect()  # modules hold reference cycles
    held = dict.fromkeys(devices, 0)
    for array in jax.live_arrays():
        for device in array.sharding.device_set & held.keys():
            held[device] += math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
    return list(held.values())


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_come_to_each_device_in_part_and_nowhere_whole(tmp_path, pretrained):
    config = TrainConfig(mesh=MeshConfig(data=1, fsdp=8))
    if pretrained:
        source = Encoder(DEMO_ENCODER, rngs=nnx.Rngs(5))
        export_hf(source, tmp_path)
        del source
        demo_tokenizer().save_pretrained(tmp_path)
        glue = DataConfig(task="rte", source=str(tmp_path))
        config = dataclasses.replace(config, model=ModelConfig(path=str(tmp_path)), data=glue)
    devices = jax.devices()
    before = bytes_on_each(devices)
    model = TaskModel.from_config(config)
    held = [after - b for after, b in zip(bytes_on_each(devices), before, strict=True)]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((model.params, model.constants)))
    assert max(held) == min(held)
    assert whole / 8 < held[0] < whole / 6


if __name__ == "__main__":
    text = json.dumps({name: specs(config) for name, config in MESHES.items()}, indent=1)
    GOLDEN.write_text(text + "\n")
