"""Paired timings: the candidates take turns in one run, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from svt_jax.host import compiler_options, keep_freed_memory

Candidates = dict[str, Callable[[], Any]]


def paired(candidates: Candidates, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each candidate, [repeats], called in turns after one call that is not counted.

    A candidate returns when its work is done; JAX's arrays are waited for.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    for _ in range(repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def installed(package: str) -> bool:
    """Whether a package is installed; if not, says that its rows are left out."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed: its rows are left out.")
    return found


def in_own_process(make: Callable[..., Candidates], *arguments: Any) -> Candidates:
    """Runs the candidates that `make(*arguments)` returns in a new process; a call returns what theirs returns.

    One library's threads and memory are then out of the other's way, as for users, who have only one of them.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    process.start()
    theirs.close()

    def call(name: str) -> Any:
        ours.send(name)
        return ours.recv()

    return {name: functools.partial(call, name) for name in ours.recv()}


def _serve(connection: Any, make: Callable[..., Candidates], arguments: tuple[Any, ...]) -> None:
    keep_freed_memory()  # as for ours
    candidates = make(*arguments)
    connection.send(list(candidates))
    with contextlib.suppress(EOFError):  # until the other side ends
        while True:
            connection.send(candidates[connection.recv()]())


def ratio(seconds: dict[str, np.ndarray], slow: str, fast: str) -> float:
    """How many times longer `slow` takes: the median over turns; each turn's two timings are neighbours."""
    return float(np.median(seconds[slow] / seconds[fast]))


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers with three digits."""
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def torch_device() -> str:
    """Where PyTorch's side runs: on the kind of device that JAX takes by default."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_done() -> None:
    """Waits for what PyTorch has begun; on a CPU it has ended when its calls return."""
    if torch_device() == "cuda":
        import torch

        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """What a number depends on apart from the code: versions, cores, device, compiler flags, precision of products."""
    packages: dict[str, str | None] = {}
    for package in ("jax", "flax", "numpy", "torch", "transformers", "sentence-transformers"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {
        "python": platform.python_version(),
        **packages,
        "device": jax.devices()[0].device_kind,
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        "compiler": {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            **{kind: compiler_options(kind) for kind in ("training", "inference")},
        },
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
