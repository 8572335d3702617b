"""A tiny run to harm: started in its own process, watched, killed, and compared with an undisturbed one."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np

from svt_jax.run.line_files import read_all
from svt_jax.stores import in_store

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


def _train(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the server has that of its own start
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
      folder: the folder of runs, which may lie in an object store.
      output: the file of what it prints; None is beside the folder.
      environment: variables of its process.
    """

    def __init__(self, folder: Path, output: Path | None = None, environment: dict[str, str] | None = None):
        self.folder, self.path = folder, folder / "run"
        self._output = folder.parent / f"{folder.name}.out" if output is None else output
        self._environment = environment or {}
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self, *options: str) -> Run:
        self.output_before = len(self.output())
        arguments = [*TINY, "--run.output_dir", str(self.folder), *options]
        self.process = _CONTEXT.Process(
            target=_train, args=(arguments, str(self._output), self._environment), daemon=True
        )
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
            return read_all(self.path / "metrics.jsonl").count(b"\n")
        return 0

    def saving(self) -> bool:
        if in_store(self.path):  # objects of a checkpoint without the record, which comes last
            steps: dict[str, set[str]] = {}
            for name in (self.path / "checkpoints").objects():
                steps.setdefault(name.split("/")[0], set()).add(name.split("/")[1])
            return any("record.json" not in names for names in steps.values())
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
            time.sleep(0.02 if in_store(self.path) else 0.001)
        return False


@functools.cache
def saved_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint as stored, read without the tested code."""
    if in_store(run):
        return _arrays_in_store(run / "checkpoints" / str(step))
    import orbax.checkpoint as ocp

    arrays = {}
    for item in ("params", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(run.absolute() / "checkpoints" / str(step) / item)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        arrays |= {_words(item + jax.tree_util.keystr(path)): np.asarray(leaf) for path, leaf in leaves}
    return arrays


def _words(name: str) -> str:
    """The parts of an array's name: Orbax gives back dictionaries where the state has attributes and lists."""
    return "/".join(re.findall(r"\w+", name))


def _arrays_in_store(folder: Path) -> dict[str, np.ndarray]:
    """As `saved_arrays`, of a run with one process and one device: each array is one shard."""
    from safetensors.numpy import load

    attempt = json.loads((folder / "record.json").read_bytes())["attempt"]
    return {
        _words(part + key.partition("@")[0]): array
        for part in ("params", "optimizer")
        for name in folder.objects()
        if name.startswith(f"{attempt}-0-{part}-")
        for key, array in load((folder / name).read_bytes()).items()
    }


def same_bits(run: Path, reference: Path) -> bool:
    """Whether a run's parameters, optimizer, losses and scores equal the reference's."""
    from svt_jax.run.folder import RunFolder

    def told(folder: Path) -> list:
        lines = [(line["step"], line["loss"], line["alpha"]) for line in RunFolder(folder).read_metrics()]
        results = RunFolder(folder).read_results()
        return [lines, results["metrics"], results["best"], results["evaluations"]]

    ours, theirs = (saved_arrays(folder, STEPS) for folder in (run, reference))
    same = ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    return same and told(run) == told(reference) and len((run / "report.html").read_bytes()) > 1000
