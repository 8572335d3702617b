"""Checkpoints in an object store: the same guarantees as on a disk, for any sharding, and no half checkpoint counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from svt_jax.mesh import make_mesh
from svt_jax.run import store_checkpoint
from svt_jax.run.checkpoint import CheckpointWriteError, MisplacedError, TrainState, abstract
from svt_jax.run.store_checkpoint import StoreCheckpoints, open_checkpoints
from svt_jax.stores import StoreError, move
from tests.stores.test_stores import full


def state(value):
    params = nnx.State({"a": nnx.Param(jnp.full((8, 4), value)), "b": nnx.Param(jnp.arange(3.0) * value)})
    return TrainState(params, nnx.State({}), {"count": jnp.int32(value)})


def shardings(like, **sizes):
    mesh = make_mesh(**sizes)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*["fsdp"] * (leaf.ndim == 2))), like)


def like(**sizes):
    return abstract(state(0.0), shardings(state(0.0), **(sizes or {"data": 2, "fsdp": 4})))


def saved(folder, *steps, run=None, **options):
    checkpoints = open_checkpoints(folder, run=run, **options)
    assert isinstance(checkpoints, StoreCheckpoints)
    for step in steps:
        checkpoints.save(step, state(float(step)), {"told": step}, steps[0])
    checkpoints.close()


def restored(folder, step=None, **options):
    checkpoints = open_checkpoints(folder, read_only=True, **options)
    found = checkpoints.restore(like(), step)
    checkpoints.close()
    return found


def same(found, step):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(state(float(step))), strict=True)
    return all(np.array_equal(ours, theirs) and ours.dtype == theirs.dtype for ours, theirs in leaves)


def test_the_newest_and_the_best_are_kept(folder):
    saved(folder, 1, 2, 3, 4)
    step, found, progress = restored(folder)
    assert (step, progress) == (4, {"told": 4})
    assert same(found, 4)
    assert sorted({name.split("/")[0] for name in folder.objects()}) == ["1", "3", "4"]
    assert open_checkpoints(folder, read_only=True).best == 1


@pytest.mark.parametrize("pieces", [1, 2**27])
def test_shards_of_one_mesh_restore_to_another(folder, monkeypatch, pieces):
    monkeypatch.setattr(store_checkpoint, "_MOST_BYTES", pieces)
    checkpoints = open_checkpoints(folder)
    divided = jax.device_put(state(3.5), shardings(state(3.5), data=1, fsdp=8))
    checkpoints.save(1, divided, {}, None)
    checkpoints.wait()
    for sizes in ({"data": 2, "fsdp": 4}, {"data": 8, "fsdp": 1}):
        _, found, _ = checkpoints.restore(like(**sizes))
        assert same(found, 3.5)
        assert found.params["a"].get_value().sharding.mesh.shape["fsdp"] == sizes["fsdp"]
    checkpoints.close()


def test_values_are_those_of_the_save_even_if_the_next_step_takes_the_buffers(folder, server):
    checkpoints = open_checkpoints(folder)
    before = state(5.0)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    checkpoints.save(1, before, {}, None)
    jax.block_until_ready(step(before))
    checkpoints.close()
    assert same(restored(folder)[1], 5)


def test_a_save_that_ends_early_counts_for_nothing_and_is_cleaned_up(folder):
    saved(folder, 1)
    half = {name: (folder / "1" / name).read_bytes() for name in (folder / "1").objects() if name != "record.json"}
    for name, content in half.items():
        (folder / "2" / name).write_bytes(content)
    assert restored(folder)[0] == 1
    assert len(folder.objects()) == 2 * len(half) + 1  # a reader removes nothing
    saved(folder)
    assert {name.split("/")[0] for name in folder.objects()} == {"1"}


def test_a_full_store_is_one_line_and_the_checkpoints_before_stay(folder, server):
    saved(folder, 1, 2)
    checkpoints = open_checkpoints(folder)
    with server.failing(lambda request: full(server) if request.writes else None):
        checkpoints.save(3, state(3.0), {}, None)
        with pytest.raises(CheckpointWriteError, match="those before it are whole") as error:
            checkpoints.wait()
    assert "\n" not in str(error.value)
    assert "uota" in str(error.value)
    assert restored(folder)[0] == 2
    checkpoints.save(3, state(3.0), {}, None)
    checkpoints.close()
    assert restored(folder)[0] == 3


@pytest.mark.slow
def test_each_damaged_object_is_found_and_the_one_before_is_used(folder):
    saved(folder, 1, 2)
    whole = {name: (folder / "2" / name).read_bytes() for name in (folder / "2").objects()}
    for name, content in whole.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damage in (content[: len(content) // 2], b"", bytes(flipped)):
            (folder / "2" / name).write_bytes(damage)
            step, found, _ = restored(folder)
            assert same(found, step)
            assert step == 1 or damage == bytes(flipped)  # a flipped bit of an index or a name may change nothing
        (folder / "2" / name).unlink()
        assert restored(folder)[0] == 1
        (folder / "2" / name).write_bytes(content)
    assert restored(folder)[0] == 2


def test_a_store_that_refuses_is_no_damage(folder, server):
    saved(folder, 1, 2)
    before = list(folder.objects())
    checkpoints = open_checkpoints(folder)
    with (
        server.failing(lambda request: full(server) if "safetensors" in request.path and not request.writes else None),
        pytest.raises(StoreError, match="the store refuses"),
    ):
        checkpoints.restore(like())
    assert list(folder.objects()) == before
    assert checkpoints.restore(like())[0] == 2
    checkpoints.close()


def test_a_damaged_checkpoint_is_put_aside_and_its_step_saved_again(folder):
    saved(folder, 1, 2)
    name = next(name for name in (folder / "2").objects() if "params" in name)
    (folder / "2" / name).write_bytes(b"")
    checkpoints = open_checkpoints(folder)
    assert checkpoints.restore(like())[0] == 1
    assert (folder / "unreadable-2-1" / name).is_file()
    checkpoints.save(2, state(2.0), {}, None)
    checkpoints.close()
    assert same(restored(folder)[1], 2)


def test_a_checkpoint_of_another_run_or_step_is_refused(folder):
    saved(folder, 1, run="a" * 32)
    with pytest.raises(MisplacedError, match="of another run"):
        restored(folder, run="b" * 32)
    move(folder / "1", folder / "2")
    with pytest.raises(MisplacedError, match="of step 1"):
        restored(folder)


def test_a_run_that_lost_its_lock_commits_nothing(folder):
    def lost():
        raise StoreError(folder, "another process has taken this folder", "Leave it.")

    checkpoints = open_checkpoints(folder, fence=lost)
    checkpoints.save(1, state(1.0), {}, None)
    with pytest.raises(CheckpointWriteError, match="has taken this folder"):
        checkpoints.close()
    assert open_checkpoints(folder, read_only=True).steps == []


def test_a_checkpoint_counts_only_with_the_objects_of_all_processes(folder, monkeypatch):
    monkeypatch.setattr(store_checkpoint, "OTHERS_SECONDS", 0.5)
    checkpoints = open_checkpoints(folder)
    write = StoreCheckpoints._put

    def of_two(self, step, attempt, shards, record):
        write(self, step, attempt, shards, {**record, "processes": 2})

    monkeypatch.setattr(StoreCheckpoints, "_put", of_two)
    checkpoints.save(1, state(1.0), {}, None)
    with pytest.raises(CheckpointWriteError, match=r"no sign of \w+-1.json"):
        checkpoints.close()
    assert open_checkpoints(folder, read_only=True).steps == []


def test_the_record_says_where_the_arrays_are(folder):
    saved(folder, 7, run="c" * 32)
    record = json.loads((folder / "7" / "record.json").read_bytes())
    assert {"step": 7, "run": "c" * 32, "processes": 1, "progress": {"told": 7}}.items() <= record.items()
    assert {name.split("-")[0] for name in (folder / "7").objects()} == {record["attempt"], "record.json"}
