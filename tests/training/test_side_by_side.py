"""Runs side by side: each one's numbers and files are those of a single run, however it is stopped."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from svt_jax.data import demo
from svt_jax.errors import NonFiniteError, StoppedBySignalError
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run import task_model
from svt_jax.run.checkpoint import Checkpoints
from svt_jax.run.command_line import make_config
from svt_jax.run.folder import RunFolder
from svt_jax.training import grid, loop, stacked
from svt_jax.training.callbacks import Callback
from svt_jax.training.progress import PlainConsole
from svt_jax.training.setup import setup
from svt_jax.training.side_by_side import together, train_side_by_side
from svt_jax.training.train import own_callbacks
from tests.training.test_train import raw_arrays

QUIET = PlainConsole(quiet=True)
STEPS = 6


def config(folder, name, seed=0, *, alpha=-0.2, rate=5e-4, function="soft_decay", accumulate=1, **optim):
    return make_config(
        {
            "run": {"name": name, "seed": seed, "output_dir": str(folder)},
            "model": {"path": "demo"},
            "svt": {"function": function, **({} if function == "none" else {"alpha": alpha})},
            "data": {"groups": 8, "eval_batch_size": 64},
            "optim": {
                "learning_rate": rate, "max_steps": STEPS, "batch_size": 16 // accumulate, "accumulate": accumulate, **optim
            },
            "log": {"every_steps": 2, "evaluate_every_steps": 4, "spectrum_every_steps": 4},
        }
    )  # fmt: skip


def settings(folder, **common):
    """Three runs that differ in all that may differ."""
    return [
        config(folder, "first", 0, **common),
        config(folder, "second", 1, **common),
        config(folder, "third", 2, **{"alpha": -0.5, **common}, rate=1e-3),
    ]


def side_by_side(configs, callbacks=()):
    experiments = [setup(each, one_device=True) for each in configs]
    return train_side_by_side(
        experiments, [[*own_callbacks(each, QUIET, each.config.run.name), *callbacks] for each in experiments]
    )


@pytest.fixture(scope="module", autouse=True)
def small_demo():
    """One layer and few stories, since these tests train some thirty runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_model, "DEMO_ENCODER", dataclasses.replace(task_model.DEMO_ENCODER, num_hidden_layers=1))
        patch.setattr(demo, "SIZES", {"train": 256, "validation": 64, "test": 1})
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of three runs, trained side by side and one after another."""
    beside, alone = tmp_path_factory.mktemp("beside"), tmp_path_factory.mktemp("alone")
    side_by_side(settings(beside))
    for each in settings(alone):
        one(each)
    return beside, alone


def one(config, callbacks=()):
    experiment = setup(config, one_device=True)
    return loop.train(experiment, [*own_callbacks(experiment, QUIET), *callbacks])


def numbers(run):
    """All numbers that a run has written, but for times, by place."""
    found = {}
    for name in ("metrics.jsonl", "spectrum.jsonl"):
        for line in (json.loads(line) for line in (run / name).read_text().splitlines()):
            for path, leaf in jax.tree_util.tree_leaves_with_path(line):
                place = jax.tree_util.keystr(path)
                if not isinstance(leaf, str) and "per_second" not in place and "compiles" not in place:
                    found[f"{name} {line['step']} {place}"] = leaf
    results = json.loads((run / "results.json").read_text())
    for path, leaf in jax.tree_util.tree_leaves_with_path([results["metrics"], results["evaluations"]]):
        found[f"results {jax.tree_util.keystr(path)}"] = leaf
    step, arrays = raw_arrays(run)
    return {"step": step, **found, **arrays}


def assert_same(ours, theirs):
    """Equal numbers, as far as two programs of the same operations round alike.

    (With all of XLA's optimizations, which tests do without, the demo's are the same bits.) Adam turns the sign of a
    gradient that is nothing but rounding into a whole step, so a few parameters may differ more.
    """
    ours, theirs = numbers(ours), numbers(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        value, other = np.asarray(value, np.float64), np.asarray(theirs[name], np.float64)
        if value.ndim == 0:
            rtol = 3e-6 if name.startswith("spectrum.jsonl") else 1e-6
            atol = 2e-3 if "histogram" in name else 1e-6  # two of a thousand values, which may lie at a bin's edge
            np.testing.assert_allclose(value, other, rtol=rtol, atol=atol, err_msg=name)
        else:
            off = np.abs(value - other)
            assert off.max() < 1e-4, name
            assert np.mean(off > 1e-6 * (1 + np.abs(other))) < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_each_run_has_the_numbers_and_files_of_a_single_run(both, name):
    ours, theirs = (folder / name for folder in both)
    assert_same(ours, theirs)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert json.loads((ours / "results.json").read_text())["train"]["compiles"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("common", [{"function": "none"}, {"accumulate": 2}], ids=str)
def test_without_an_svt_and_with_accumulation_too(tmp_path, common):
    beside, alone = settings(tmp_path / "beside", **common), settings(tmp_path / "alone", **common)
    side_by_side(beside)
    one(alone[1])
    assert_same(tmp_path / "beside" / "second", tmp_path / "alone" / "second")


@pytest.mark.slow
def test_vmapped_as_on_accelerators_the_numbers_are_the_same(both, tmp_path, monkeypatch):
    monkeypatch.setattr(stacked, "loops", lambda: False)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    side_by_side(settings(tmp_path))  # two on the first device; on the second one, and that again
    for name in ("first", "second", "third"):
        assert_same(tmp_path / name, both[1] / name)


class StopsAfter(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, step, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_stopped_together_they_go_on_together_or_alone_to_the_same_numbers(both, tmp_path):
    configs = settings(tmp_path)
    with pytest.raises(StoppedBySignalError, match="the state is saved"):
        side_by_side(configs, [StopsAfter(1)])
    steps = {each.run.name: Checkpoints(RunFolder(tmp_path / each.run.name).checkpoints).steps for each in configs}
    assert len({tuple(each) for each in steps.values()}) == 1
    assert 0 < steps["first"][-1] < STEPS
    one(configs[2])
    side_by_side(configs[:2])
    for each in configs:
        assert_same(tmp_path / each.run.name, both[1] / each.run.name)


@pytest.mark.slow
def test_runs_that_were_killed_after_different_steps_all_end_the_same(both, tmp_path):
    configs = settings(tmp_path)
    with pytest.raises(StoppedBySignalError):
        one(configs[0], [StopsAfter(1)])
    side_by_side(configs)
    for each in configs:
        assert_same(tmp_path / each.run.name, both[1] / each.run.name)


@pytest.mark.slow
def test_one_that_is_not_finite_ends_alone_and_is_named(both, tmp_path, capsys):
    first, second, third = settings(tmp_path)
    wild = dataclasses.replace(second, optim=dataclasses.replace(second.optim, learning_rate=1e30))
    console = PlainConsole(width=200)
    with pytest.raises(NonFiniteError, match="1 of 3 runs have no result: second .step "):
        grid.run_grid([(each.run.name, each) for each in (first, wild, third)], console)
    assert "runs 1 to 3 of 3, side by side: first, second, third" in capsys.readouterr().out
    for name in ("first", "third"):
        assert_same(tmp_path / name, both[1] / name)
    assert not (tmp_path / "second" / "results.json").exists()


def test_only_what_differs_in_numbers_shares_a_program(tmp_path):
    first = config(tmp_path, "first")
    key = together(first)
    assert key is not None
    assert together(config(tmp_path, "second", 3, alpha=-0.6, rate=1e-5)) == key
    assert together(config(tmp_path, "third", function="log_shift")) != key
    contra = {"function": "contra_norm", "site": "attention", "placement": "norm_input"}
    by_scale = [dataclasses.replace(first, svt=SVTConfig(**contra, params={"scale": c})) for c in (0.05, 0.1)]
    assert together(by_scale[0]) == together(by_scale[1])
    loss = [dataclasses.replace(first, svt=SVTConfig("cos_reg", site="loss", params={"weight": w})) for w in (1.0, 2.0)]
    assert together(loss[0]) != together(loss[1])  # a weight is a constant of the program
    assert together(config(tmp_path, "fourth", max_steps=7)) != key
    assert together(dataclasses.replace(first, data=dataclasses.replace(first.data, layout="padded"))) is None
    assert together(dataclasses.replace(first, mesh=dataclasses.replace(first.mesh, tensor=2))) is None


def test_as_many_as_the_memory_has_room_for_are_trained_at_a_time(monkeypatch, caplog):
    made = []

    def compile_step(experiment, state, number):
        made.append(number)
        return stacked.Program(number, number, None, 1.0, number * 2**30, None)

    monkeypatch.setattr(stacked, "compile_step", compile_step)
    monkeypatch.setattr(stacked, "first_state", lambda experiment: None)
    for free, number in ((None, 8), (100 * 2**30, 8), (5 * 2**30, 4), (2**20, 1)):
        monkeypatch.setattr(stacked, "free_bytes", lambda free=free: free)
        assert stacked.compile_what_fits(None, 8).number == number
    assert "8 runs side by side need 8.0 GiB of a device's memory, 5.0 GiB are free: 4 at a time" in caplog.text


def test_the_free_memory_of_this_machine_is_known():
    assert 2**20 < stacked.free_bytes() < 2**50
