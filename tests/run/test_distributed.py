"""Many processes on this machine, over loopback: equal numbers to one process; a signal to one; the loss of one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from svt_jax.run.folder import RunFolder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 30
SHORT = [
    "--config", str(ROOT / "configs" / "demo.yaml"), "--run.name", "run", "--optim.max_steps", str(STEPS),
    "--checkpoint.every_steps", "10", "--log.every_steps", "1",
]  # fmt: skip


class Group:
    """The processes of one command."""

    def __init__(self, script, arguments, folder, *, processes, devices):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{found.getsockname()[1]}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONWARNINGS": "ignore"}
        folder.mkdir(exist_ok=True)
        self.outputs = [folder / f"{Path(script).stem}-{processes}.{n}" for n in range(processes)]
        self.processes = []
        for n, output in enumerate(self.outputs):
            keys = {"coordinator": address, "num_processes": processes, "process_id": n}
            together = [f"--distributed.{key}={value}" for key, value in keys.items()] if processes > 1 else []
            with output.open("w") as file:
                command = [sys.executable, str(ROOT / script), *arguments, *together]
                self.processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))

    def finish(self, seconds=300):
        """Waits; returns exit statuses and outputs."""
        deadline = time.monotonic() + seconds
        try:
            statuses = [each.wait(max(deadline - time.monotonic(), 0)) for each in self.processes]
        finally:
            for each in self.processes:
                each.kill()
        return statuses, [output.read_text() for output in self.outputs]

    def wait_for_step(self, run, step, seconds=300):
        deadline = time.monotonic() + seconds
        while not any(line["step"] >= step for line in RunFolder(run).read_metrics()):
            ended = [each.poll() for each in self.processes]
            assert ended == [None] * len(ended), [output.read_text() for output in self.outputs]
            assert time.monotonic() < deadline, [output.read_text() for output in self.outputs]
            time.sleep(0.01)


def train(folder, **sizes):
    return Group("train.py", [*SHORT, "--run.output_dir", str(folder)], folder, **sizes)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    statuses, outputs = train(folder, processes=1, devices=8).finish()
    assert statuses == [0], outputs
    return folder / "run"


def test_numbers_are_those_of_one_process_across_a_signal_and_another_number_of_processes(single, tmp_path):
    """Two processes of four devices, stopped by a signal to one of them; then four of two devices, to the end."""
    run = tmp_path / "run"
    two = train(tmp_path, processes=2, devices=4)
    two.wait_for_step(run, 3)
    two.processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = two.finish()
    assert statuses == [143, 143], outputs
    stopped = [re.search(r"stopped by SIGTERM after step (\d+)", output)[1] for output in outputs]
    assert stopped[0] == stopped[1]
    assert 3 <= int(stopped[0]) < STEPS
    statuses, outputs = train(tmp_path, processes=4, devices=2).finish()
    assert statuses == [0] * 4, outputs
    assert f"resuming {run} after step {stopped[0]}" in outputs[0]
    assert "see " in outputs[0]
    assert not any("step" in output or "see " in output for output in outputs[1:]), "only the first process tells"

    losses = [[line["loss"] for line in RunFolder(each).read_metrics()] for each in (single, run)]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    results = [RunFolder(each).read_results() for each in (single, run)]
    assert results[0]["metrics"] == results[1]["metrics"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert [manifest["processes"], manifest["resumed"][0]["processes"]] == [2, 4]

    statuses, outputs = Group("eval.py", ["glue", "--run", str(run)], tmp_path, processes=2, devices=4).finish()
    assert statuses == [0, 0], outputs
    outcome = json.loads(next(line for line in outputs[0].splitlines() if line.startswith("{")))
    assert outcome["metrics"] == results[0]["metrics"]["validation"]
    assert outcome["examples"] == 1000
    assert "metrics" not in outputs[1]


def test_when_one_process_is_lost_the_others_stop_with_a_message(tmp_path):
    two = train(tmp_path, processes=2, devices=4)
    two.wait_for_step(tmp_path / "run", 2)
    two.processes[1].kill()
    start = time.monotonic()
    statuses, outputs = two.finish()
    assert time.monotonic() - start < 60
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] in (4, -signal.SIGABRT), outputs[0]
    said = {4: "error: process 0 of 2 cannot reach the others", -signal.SIGABRT: "another task died"}
    assert said[statuses[0]] in outputs[0]


def test_a_process_alone_reaches_for_nothing(tmp_path):
    program = (
        "import socket, jax\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "from svt_jax.run import distributed\n"
        "from svt_jax.run.config import DistributedConfig\n"
        "distributed.join(DistributedConfig())\n"
        "assert not jax.distributed.is_initialized() and distributed.is_first()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
