"""Many processes with a run in a bucket, as on hosts without a shared disk: one is lost, and another number goes on."""

import json
import signal
import threading

import numpy as np
import pytest

from svt_jax.run.folder import RunFolder
from svt_jax.run.run_files import saved_steps
from svt_jax.stores import as_path
from tests.run.test_distributed import SHORT, Group
from tests.stores.servers import BUCKET, running

pytestmark = pytest.mark.slow
STEPS = 12
OPTIONS = [
    *SHORT, "--optim.max_steps", str(STEPS), "--checkpoint.every_steps", "2", "--data.eval_batch_size", "200",
    "--mesh.data", "1", "--mesh.fsdp", "4",
]  # fmt: skip


def test_a_run_in_a_bucket_outlives_a_lost_host_and_goes_on_with_another_number(tmp_path, monkeypatch):
    reference = Group(
        "train.py", [*OPTIONS, "--run.output_dir", str(tmp_path / "disk")], tmp_path / "a", processes=1, devices=4
    )
    statuses, outputs = reference.finish()
    assert statuses == [0], outputs
    with running("gs", tmp_path) as server:
        runs, cache = as_path(f"gs://{BUCKET}/runs"), as_path(f"gs://{BUCKET}/cache")
        monkeypatch.setenv("SVT_JAX_CACHE", str(cache))
        command = [*OPTIONS, "--run.output_dir", str(runs)]
        two = Group("train.py", command, tmp_path / "b", processes=2, devices=2)
        two.wait_for_step(runs / "run", 4)
        held, go_on = threading.Event(), threading.Event()

        def hold(request):  # the last object of the second process's part of a checkpoint
            if "-1.json" not in request.name or not request.writes:
                return None
            held.set()
            go_on.wait(60)
            return "cut"

        with server.failing(hold):
            assert held.wait(200), [output.read_text() for output in two.outputs]
            two.processes[1].kill()
            go_on.set()
            assert any("-1-params" in name for name in _unfinished(runs / "run")), "it had begun to save"
        statuses, outputs = two.finish()
        assert statuses[1] == -signal.SIGKILL
        assert statuses[0] in (2, 4, -signal.SIGABRT), outputs[0]
        tokens = [each.name for each in server.seen if each.writes and "tokens-" in each.name]
        assert len(tokens) == len(cache.objects()) == 2  # of train and validation, once, by one of the two processes

        steps = saved_steps(runs / "run" / "checkpoints")
        record = json.loads((runs / "run" / "checkpoints" / str(steps[-1]) / "record.json").read_bytes())
        assert record["processes"] == 2
        one = Group("train.py", command, tmp_path / "c", processes=1, devices=4)
        statuses, outputs = one.finish()
        assert statuses == [0], outputs
        assert f"after step {steps[-1]} of {STEPS}" in outputs[0]
        found, expected = RunFolder(runs / "run"), RunFolder(tmp_path / "disk" / "run")
        losses = [[line["loss"] for line in each.read_metrics()] for each in (found, expected)]
        assert len(losses[0]) == STEPS
        np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
        assert found.read_results()["metrics"] == expected.read_results()["metrics"]


def _unfinished(run):
    names = [name.split("/") for name in (run / "checkpoints").objects()]
    whole = {step for step, name in names if name == "record.json"}
    return [name for step, name in names if step not in whole]
