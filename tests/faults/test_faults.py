"""kill -9 at random moments, also while saving; damaged checkpoints, full disk, unwritable folder, two runs at once.

The resumed run ends with the same bits as an undisturbed one. One file, so that one worker makes the undisturbed run.
"""

import contextlib
import os
import random
import re
import resource
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest
from flax import nnx

from svt_jax.run.checkpoint import Checkpoints, abstract
from svt_jax.run.command_line import parse_config
from svt_jax.run.task_model import DEMO_ENCODER, random_classifier
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.step import TrainState
from tests.faults.runs import STEPS, TINY, Run, same_bits

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("SVT_JAX_KILLS", "6"))
"""By hand, more of them: `SVT_JAX_KILLS=20 pytest -m slow tests/faults -k kills`."""


def moments(number, dice):
    """Kinds of moments: half of them while a checkpoint is saved, an eighth while the process starts."""
    starting, saving = max(number // 8, 1), number // 2
    kinds = ["saving"] * saving + ["training"] * (number - saving - starting) + ["starting"] * starting
    dice.shuffle(kinds)
    return kinds


def wait_for_the_moment(run, kind, dice):
    """Waits for a moment of the given kind; false if the run ended before it came."""
    before = run.lines()
    if kind == "starting":
        moment = time.monotonic() + dice.uniform(0.0, 4.0)
        return run.wait(lambda: time.monotonic() > moment)
    came = run.wait(lambda: run.lines() > before + 1)
    if kind == "saving":
        came = came and run.wait(run.saving)
        time.sleep(dice.uniform(0.0, 0.03))
    else:
        time.sleep(dice.uniform(0.0, 0.5))
    return came and run.alive


def test_kills_at_random_moments_lose_nothing(tmp_path, reference, count):
    dice = random.Random(0)
    kinds = moments(KILLS, dice)
    survived = chains = 0
    while kinds:  # a chain: kill and restart until the run is complete
        chain, run = [], Run(tmp_path / f"chain{chains}")
        chains += 1
        run.start()
        while kinds and wait_for_the_moment(run, kinds[-1], dice):
            run.kill()
            chain.append(kinds.pop())
            run.start()
        status, output = run.finish()
        assert status == 0, output
        if same_bits(run.path, reference):
            survived += len(chain)
    count("kill -9", KILLS, survived)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed somewhere in the middle."""
    run = Run(tmp_path_factory.mktemp("interrupted")).start()
    assert run.wait(lambda: run.lines() >= 6)
    run.kill()
    return run.path


@pytest.fixture
def copy(interrupted, tmp_path):
    """A run that resumes from a copy of the interrupted one."""
    run = Run(tmp_path / "runs")
    shutil.copytree(interrupted, run.path)
    return run


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path, dice=random.Random(1)):  # noqa: B008
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit])
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(copy, reference, count, damage):
    newest = max(int(path.name) for path in (copy.path / "checkpoints").glob("[0-9]*") if path.name.isdigit())
    largest = max((copy.path / "checkpoints" / str(newest)).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    damage(largest)
    status, output = copy.start().finish()
    assert status == 0, output
    assert f"the checkpoint of step {newest} is damaged" in output
    assert "resuming" in output
    count("damaged newest checkpoint, restarted", 1, same_bits(copy.path, reference))


def end(run, reference, message):
    """The status of a run that met a fault, and whether it ends correctly once the fault is gone."""
    status, output = run.finish()
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output, output
    status, output = run.start().finish()
    assert status == 0, output
    return same_bits(run.path, reference)


def test_a_file_that_may_not_grow_stops_the_run_and_loses_nothing(tmp_path, reference, count):
    run = Run(tmp_path / "runs").start()
    assert run.wait(lambda: run.lines() >= 4)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    count("no room for a file", 1, end(run, reference, "could not be written"))


@contextlib.contextmanager
def mounted(folder, *options):
    if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, reference, count):
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        run = Run(folder).start()
        assert run.wait(lambda: run.lines() >= 4)
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        status, output = run.finish()
        assert status == 2, output
        assert "No space left" in output or "could not be written" in output
        assert "Traceback" not in output, output
        (folder / "filler").unlink()
        status, output = run.start().finish()
        assert status == 0, output
        count("full disk", 1, same_bits(run.path, reference))


SMALL_DISKS = {
    "8k": "model",
    "16k": "manifest.json",
    "20k": "metrics.jsonl",
    "24k": "checkpoints",
    "100k": "checkpoints",
}


def test_a_disk_that_is_too_small_is_told_in_one_line_with_the_file_and_what_to_do(tmp_path, reference, count):
    """The disk grows a little after each start, and the run meets its end at the next file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=8k", "tmpfs"):
        run = Run(folder)
        for size, file in SMALL_DISKS.items():
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
            status, output = run.start().finish()
            assert status == 2, (size, output)
            assert re.fullmatch(
                rf"(WARNING.* has no checkpoint.*\n)?(platform .*\nwriting to .*\n)?error: .*{re.escape(str(run.path / file))}\b.*No space left on device.*Make room.*\n",
                output,
            ), (size, output)
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        status, output = run.start().finish()
        assert status == 0, output
        count("disk too small", len(SMALL_DISKS), len(SMALL_DISKS) * same_bits(run.path, reference))


def test_a_folder_that_cannot_be_written_is_refused_and_left_as_it_is(copy, reference, count):
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    with read_only(copy.folder):
        status, output = copy.start().finish()
    assert status == 2, output
    assert "cannot be written" in output
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before
    status, output = copy.start().finish()
    assert status == 0, output
    count("read-only folder", 1, same_bits(copy.path, reference))


@contextlib.contextmanager
def read_only(folder):
    if os.geteuid() == 0:  # permissions do not stop root
        with mounted(folder, "--bind", "-o", "ro", str(folder)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            yield
    else:
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555)
        yield
        for path in paths:
            path.chmod(0o755)


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path, reference, count):
    first = Run(tmp_path / "runs").start()
    second = Run(tmp_path / "runs")
    second._output = tmp_path / "second.out"
    assert first.wait(lambda: first.lines() >= 2)
    second.start()
    status, output = second.finish()
    assert status == 2, output
    assert "is in use by another process" in output
    assert first.alive, "the first run has ended too early for the test to mean anything"
    status, output = first.finish()
    assert status == 0, output
    count("two runs on one folder", 1, same_bits(first.path, reference))


def states(run):
    """A state to restore to, and the content of each checkpoint of an undamaged run, by step."""
    config = parse_config(TINY)
    model = random_classifier(DEMO_ENCODER, config.svt, 2, dtype="float32", seed=0)
    _, params, constants = nnx.split(model, nnx.Param, ...)
    state = TrainState(params, constants, make_optimizer(config.optim, STEPS).init(params))
    like = abstract(state, jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state))
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    return like, {step: checkpoints.restore(like, step) for step in checkpoints.steps}


# After an error in reading, Orbax leaves coroutines that warn when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_to_any_file_of_the_newest_checkpoint_is_found_or_harmless(interrupted, tmp_path, count):
    """Each kind of damage to each file: restoring returns true values, from this checkpoint or the one before."""
    tried = survived = 0
    like, truth = states(interrupted)
    newest = max(truth)
    for file in sorted(p for p in (interrupted / "checkpoints" / str(newest)).rglob("*") if p.is_file()):
        for damage in (truncate, flip_a_bit) if file.stat().st_size else ():
            folder = tmp_path / str(tried)
            shutil.copytree(interrupted / "checkpoints", folder)
            damage(folder / file.relative_to(interrupted / "checkpoints"))
            checkpoints = Checkpoints(folder)
            found = checkpoints.restore(like)
            checkpoints.close()
            tried += 1
            leaves = zip(*(jax.tree.leaves(each) for each in (found, truth[found[0]])), strict=True)
            survived += all(np.array_equal(ours, theirs) for ours, theirs in leaves)
            shutil.rmtree(folder)
    count("damaged file of a checkpoint, restored", tried, survived)
