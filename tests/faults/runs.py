"""A tiny run to harm: started in its own process, watched, killed, and compared with an undisturbed one."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]
STEPS = 20
TINY = [
    "--config", str(ROOT / "configs" / "demo.yaml"), "--run.name", "run", "--optim.max_steps", str(STEPS),
    "--optim.batch_size", "8", "--data.max_length", "64", "--data.eval_batch_size", "200",
    "--checkpoint.every_steps", "1", "--log.every_steps", "1",
]  # fmt: skip

# A server that has imported everything forks each process, which halves a start's time. JAX starts in the fork.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "svt_jax.training.loop", "svt_jax.run.command_line", "svt_jax.analysis.report", "svt_jax.analysis.plots",
        "jsonargparse", "transformers.models.bert.tokenization_bert",
    ]
)  # fmt: skip


def _train(arguments: list[str], output: str) -> None:
    from svt_jax import cli

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.captureWarnings(True)
    status = cli.train(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Run:
    """A run's folder, and a process that trains in it.

    Args:
      folder: the folder of runs.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self._output = folder, folder / "run", folder.parent / f"{folder.name}.out"
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self, *options: str) -> Run:
        self.output_before = len(self.output())
        arguments = [*TINY, "--run.output_dir", str(self.folder), *options]
        self.process = _CONTEXT.Process(target=_train, args=(arguments, str(self._output)), daemon=True)
        self.process.start()
        return self

    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def finish(self, seconds: float = 500) -> tuple[int | None, str]:
        """Returns the exit status, and what the process has printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.output()}"
        return self.process.exitcode, self.output()[self.output_before :]

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    @property
    def alive(self) -> bool:
        return self.process.exitcode is None

    def lines(self) -> int:
        """Number of lines of metrics.jsonl, which is the number of the last step."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def saving(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any("tmp" in name for name in os.listdir(self.path / "checkpoints"))
        return False

    def wait(self, condition, seconds: float = 500) -> bool:
        """Waits until the condition holds (returns true) or the process has ended (false)."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if condition():
                return True
            assert time.monotonic() < deadline, f"waited {seconds} s: {self.output()}"
            time.sleep(0.001)
        return False


@functools.cache
def saved_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint as stored, read without the tested code."""
    import orbax.checkpoint as ocp

    arrays = {}
    for item in ("params", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(run.absolute() / "checkpoints" / str(step) / item)
        arrays |= {item + jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    return arrays


def same_bits(run: Path, reference: Path) -> bool:
    """Whether a run's parameters, optimizer, losses and scores equal the reference's."""
    from svt_jax.run.folder import RunFolder

    def told(folder: Path) -> list:
        lines = [(line["step"], line["loss"], line["alpha"]) for line in RunFolder(folder).read_metrics()]
        results = RunFolder(folder).read_results()
        return [lines, results["metrics"], results["best"], results["evaluations"]]

    ours, theirs = (saved_arrays(folder, STEPS) for folder in (run, reference))
    same = ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    return same and told(run) == told(reference) and (run / "report.html").stat().st_size > 1000
