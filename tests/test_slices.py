"""Meshes of several TPU slices and of several GPU hosts, made of devices that only say where they are."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from svt_jax import mesh as module
from svt_jax.mesh import make_mesh, number_of_slices
from svt_jax.run import task_model
from svt_jax.run.distributed import describe
from svt_jax.run.folder import RunFolder
from svt_jax.training.train import train

training_setup = importlib.import_module("svt_jax.training.setup")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A v5e chip of a slice, as jax.devices() describes it."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU. JAX counts hosts that a fast network connects as a slice, or tells no slice at all."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


@dataclasses.dataclass(frozen=True)
class CardOfSlice(Card):
    slice_index: int = 0


def slices(number, side=4):
    """Slices of side x side chips, four on a host; JAX may list the devices of the slices in any order."""
    places = [(n, x, y) for n in range(number) for y in range(side) for x in range(side)]
    hosts = side * side // 4
    chips = [Chip(n, s, s * hosts + (x // 2) + (y // 2) * (side // 2), (x, y, 0)) for n, (s, x, y) in enumerate(places)]
    return chips[::2] + chips[1::2]


@pytest.mark.parametrize(
    ("number", "sizes", "shape"),
    [
        (2, {}, (32, 1, 1)),
        (2, {"fsdp": 4}, (8, 4, 1)),
        (2, {"data": 2, "fsdp": -1}, (2, 16, 1)),
        (4, {"data": -1, "fsdp": 2, "tensor": 4}, (8, 2, 4)),
        (3, {"data": 6, "tensor": -1}, (6, 1, 8)),
    ],
)
def test_a_copy_of_the_model_lies_inside_a_slice_and_each_chip_once(number, sizes, shape):
    chips = slices(number)
    mesh = make_mesh(**sizes, devices=chips)
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp", "tensor"), shape)
    assert {chip.id for chip in mesh.devices.flat} == {chip.id for chip in chips}
    copies = [{chip.slice_index for chip in copy.flat} for copy in mesh.devices]
    assert all(len(copy) == 1 for copy in copies)
    order = [copy.pop() for copy in copies]
    assert order == sorted(order), "neighbours on the axis data share a slice where they can"
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 3


@pytest.mark.parametrize(
    "sizes", [{"data": 1, "fsdp": -1}, {"data": 4, "fsdp": 12}, {"data": 2, "fsdp": 8, "tensor": 3}]
)
def test_an_axis_that_would_leave_its_slice_is_refused(sizes):
    with pytest.raises(
        ValueError, match="does not fit 3 slices of 16 devices; data must be a multiple of 3, since fsdp"
    ):
        make_mesh(**sizes, devices=slices(3))


def test_one_slice_and_a_cpu_are_as_before():
    assert number_of_slices(slices(1)) == number_of_slices(jax.devices()) == 1
    assert make_mesh(fsdp=2) == jax.make_mesh(
        (4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )


@pytest.mark.parametrize("kind", [Card, CardOfSlice])
def test_gpus_of_several_hosts_stay_in_the_order_of_their_hosts(kind):
    """There is no slice where JAX does not tell one, and none that would forbid fsdp over all hosts."""
    cards = [kind(n, n // 8, **({"slice_index": n // 8} if kind is CardOfSlice else {})) for n in range(16)]
    assert number_of_slices(cards) == 1
    mesh = make_mesh(data=4, fsdp=2, tensor=2, devices=cards)
    assert [card.id for card in mesh.devices.flat] == list(range(16))
    assert all(len({card.process_index for card in copy.flat}) == 1 for copy in mesh.devices)
    assert make_mesh(data=1, fsdp=-1, devices=cards).devices.shape == (1, 16, 1)


def test_slices_are_told_with_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    told = describe(make_mesh(fsdp=4, devices=slices(2)))
    assert told == "platform tpu, 32 devices (TPU v5 lite), 2 slices, 8 processes; mesh data 8, fsdp 4, tensor 1"


@pytest.mark.slow
def test_training_on_two_simulated_slices_gives_the_same_numbers(monkeypatch, tmp_path):
    """Eight CPU devices that call themselves two slices of four chips, listed in turns."""

    @dataclasses.dataclass(frozen=True)
    class Simulated(Chip):
        device: jax.Device | None = None

    def of_cpus(devices, *rest, **options):
        return Mesh(np.vectorize(lambda chip: chip.device, otypes=[object])(devices), *rest, **options)

    cpus = jax.devices()
    chips = [Simulated(d.id, d.id % 2, 0, (d.id // 2 % 2, d.id // 4, 0), device=d) for d in cpus]
    monkeypatch.setattr(module, "Mesh", of_cpus)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=chips)
    assert [{d.id % 2 for d in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    monkeypatch.setattr(task_model, "make_mesh", lambda *_, **__: mesh)
    monkeypatch.setattr(training_setup, "make_mesh", lambda *_: mesh)
    config = {
        "run": {"output_dir": str(tmp_path)},
        "svt": {"function": "soft_decay"},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "data": {"groups": 4},
        "optim": {"max_steps": 2},
        "log": {"every_steps": 1, "progress": False},
    }
    run = train({**config, "run": {"name": "slices", "output_dir": str(tmp_path)}})
    monkeypatch.undo()
    one = train({**config, "run": {"name": "one", "output_dir": str(tmp_path)}})
    losses = [[line["loss"] for line in RunFolder(each.folder).read_metrics()] for each in (run, one)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert RunFolder(run.folder).read_results()["platform"]["devices"] == 8
