"""Checkpoints: which are kept, which are found damaged, and digests that do not depend on the mesh."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from svt_jax.errors import StoppedBySignalError
from svt_jax.mesh import make_mesh
from svt_jax.run.checkpoint import (
    Checkpoints,
    CheckpointWriteError,
    MisplacedError,
    TrainState,
    _sha256,
    abstract,
    digests,
)
from svt_jax.run.literal_path import LiteralPath, check_storable
from svt_jax.training.signals import stop_at_once


def state(value):
    params = nnx.State({"a": nnx.Param(jnp.full((8, 4), value)), "b": nnx.Param(jnp.arange(3.0) * value)})
    return TrainState(params, nnx.State({}), {"count": jnp.int32(value)})


def shardings(like):
    mesh = make_mesh(data=2, fsdp=4)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*["fsdp"] * (leaf.ndim == 2))), like)


def like():
    return abstract(state(0.0), shardings(state(0.0)))


def saved(folder, *steps, run=None):
    """A folder's checkpoints after saving these steps, closed."""
    checkpoints = Checkpoints(folder, run=run)
    for step in steps:
        checkpoints.save(step, state(float(step)), {"told": step}, steps[0])
    checkpoints.close()


def test_digests_are_the_same_on_one_device_and_divided_over_eight():
    values = {name: getattr(state(1.7), name) for name in ("params", "optimizer")}
    divided = jax.device_put(values, shardings(values))
    assert digests(values) == digests(divided)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, "bfloat16", np.uint8])
def test_a_digest_changes_with_every_bit_and_with_the_order(dtype):
    x = np.arange(1, 9).astype(jnp.dtype(dtype)).reshape(2, 4)
    whole = digests({"x": jnp.asarray(x)})
    flipped = []
    for bit in (0, 7, 8 * x.nbytes - 1, 8 * x.nbytes - 8):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        flipped.append(np.frombuffer(bytes(raw), x.dtype).reshape(x.shape))
    others = [digests({"x": jnp.asarray(other)}) for other in (*flipped, x[::-1].copy(), x[:, ::-1].copy())]
    assert all(other != whole for other in others)


def test_the_newest_and_the_best_are_kept_and_come_back_on_another_mesh(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        checkpoints.save(step, state(float(step)), {"told": [step]}, best)
    checkpoints.wait()
    assert (checkpoints.steps, checkpoints.best) == ([2, 4, 5], 2)
    checkpoints.close()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.best == 2
    like = abstract(state(0.0), shardings(state(0.0)))
    step, restored, progress = reader.restore(like)
    assert (step, progress) == (5, {"told": [5]})
    for ours, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state(5.0)), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert restored.params["a"].get_value().sharding.spec == PartitionSpec("fsdp")
    only_params = TrainState(like.params, like.constants, None)
    assert reader.restore(only_params, 2)[1].optimizer is None
    reader.close()
    assert caplog.text == "", "a reader hears nothing of how Orbax reads"


def test_a_changed_byte_is_noticed_and_the_one_before_taken(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), {"told": step}, None)
    checkpoints.close()
    record = next((tmp_path / "2" / "record").rglob("metadata"))
    record.write_text(record.read_text().replace('"told": 2', '"told": 3'))
    like = abstract(state(0.0), shardings(state(0.0)))
    again = Checkpoints(tmp_path)
    assert again.restore(like)[::2] == (1, {"told": 1})
    assert "the checkpoint of step 2 is damaged" in caplog.text
    assert again.steps == [1]
    assert "unreadable-2-1" in caplog.text
    assert (tmp_path / "unreadable-2-1" / "record").is_dir(), "what cannot be read is kept"
    again.save(2, state(2.0), {"told": 2}, None)
    again.close()
    again = Checkpoints(tmp_path)
    assert again.restore(like)[::2] == (2, {"told": 2})
    again.close()


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), {"told": step}, None)
    checkpoints.wait()
    read = Checkpoints._read_record

    def read_and_be_stopped(self, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "_read_record", read_and_be_stopped)
    with pytest.raises(StoppedBySignalError), stop_at_once():
        checkpoints.restore(abstract(state(0.0), shardings(state(0.0))))
    assert checkpoints.steps == [1, 2]
    checkpoints.close()


@pytest.mark.parametrize("name", ["lr-[1e-5]", "[paper]/run", "a*b", "a?b", "100%20 {x} $y ~", "a#b:c\nd"])
def test_a_folder_may_be_called_like_a_pattern(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    check_storable(folder)
    saved(folder, 1, 2)
    reader = Checkpoints(folder, read_only=True)
    step, restored, progress = reader.restore(like())
    assert (step, progress) == (2, {"told": 2})
    np.testing.assert_array_equal(restored.params["a"].get_value(), state(2.0).params["a"].get_value())
    reader.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/x/a\\b", "takes for a slash"),
        ("/x/gs:/b", "a part 'gs:'"),
        ("/s3/b", "begins with /s3"),
        (os.fsdecode(b"/x/\xff"), r"/x/\udcff is not UTF-8"),
    ],
)
def test_a_folder_that_the_library_would_take_for_another_is_refused(tmp_path, name, words):
    with pytest.raises(ValueError, match="Choose another --run.name") as caught:
        check_storable(tmp_path.__class__(name))
    assert words in str(caught.value)


def test_a_save_that_cannot_be_read_back_is_an_error_and_those_before_it_stay(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1.0), {"told": 1}, None)
    checkpoints.wait()
    monkeypatch.setattr(LiteralPath, "glob", lambda self, pattern: iter(()))  # Orbax finds none of its existing parts
    checkpoints.save(2, state(2.0), {"told": 2}, None)
    with pytest.raises(CheckpointWriteError, match="cannot be read back") as caught:
        checkpoints.wait()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    again = Checkpoints(tmp_path)
    assert again.restore(like())[::2] == (1, {"told": 1})
    again.close()


def test_a_checkpoint_in_the_place_of_another_step_is_refused(tmp_path):
    saved(tmp_path, 1, 2, 3, run="a" * 32)
    (tmp_path / "2").rename(tmp_path / "x")
    (tmp_path / "3").rename(tmp_path / "2")
    (tmp_path / "x").rename(tmp_path / "3")
    checkpoints = Checkpoints(tmp_path, run="a" * 32)
    for action in (
        lambda: checkpoints.restore(like()),
        lambda: checkpoints.restore(like(), 3),
        lambda: checkpoints.best,
    ):
        with pytest.raises(
            MisplacedError, match="/3 holds the checkpoint of step 2 of this run; allowed is that of step 3"
        ):
            action()
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"2", "3"}, "nothing is put aside"


def test_a_checkpoint_of_another_run_is_refused_by_its_name(tmp_path):
    saved(tmp_path / "ours", 1, run="a" * 32)
    saved(tmp_path / "theirs", 1, 2, run="b" * 32)
    shutil.copytree(tmp_path / "theirs" / "2", tmp_path / "ours" / "2")
    checkpoints = Checkpoints(tmp_path / "ours", run="a" * 32, read_only=True)
    with pytest.raises(MisplacedError, match=f"of another run, {'b' * 32}, and this is {'a' * 32}"):
        checkpoints.restore(like())
    assert checkpoints.restore(like(), 1)[0] == 1
    checkpoints.close()


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    saved(tmp_path, 1)
    path = next((tmp_path / "1" / "record").rglob("metadata"))
    record = json.loads(path.read_text())
    old = {key: record[key] for key in ("progress", "best", "digests")}
    path.write_text(json.dumps({**old, "sha256": _sha256(old)}))
    checkpoints = Checkpoints(tmp_path, run="a" * 32)
    assert checkpoints.restore(like())[::2] == (1, {"told": 1})
    checkpoints.close()
