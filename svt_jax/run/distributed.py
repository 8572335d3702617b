"""The processes of a run: how they find each other, what each reads, and which one writes.

Every process runs the same program over one mesh of all devices. Only the first process writes the run's folder and
the console; Orbax saves from all. JAX finds the processes on TPU slices, under SLURM and Open MPI, and in Kubernetes
jobs; elsewhere the config's section `distributed` names them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from svt_jax.mesh import number_of_slices
from svt_jax.run.config import DistributedConfig

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
"""A process that is silent for this long is lost, and the others stop."""
_SHUTDOWN_SECONDS = 20
"""A process that ends waits this long for the others to end too."""


def join(config: DistributedConfig, *, saves: bool = True) -> None:
    """Connects the processes of this run. A single process connects to nothing.

    Call it before anything asks JAX for a device; calling it again does nothing.

    Args:
      config: the addresses and numbers of the processes.
      saves: true lets JAX's preemption service note SIGTERM, on which the training loop acts (`signals`); false lets
        SIGTERM end the process as usual.
    Raises:
      ValueError: if the others cannot be found.
    """
    others = (config.coordinator, config.num_processes, config.process_id)
    given = config.coordinator is not None
    if jax.distributed.is_initialized() or not (given or _on_cluster()):
        return
    jax.config.update("jax_enable_preemption_service", saves)
    try:
        jax.distributed.initialize(
            *others,
            cluster_detection_method="deactivate" if given else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes of this run did not find each other ({error}); allowed is a cluster that JAX detects, or "
            "distributed.coordinator, num_processes and process_id. Check the address, and that all were started."
        ) from error


def _on_cluster() -> bool:
    """Whether JAX can detect a cluster. Detection asks a TPU's metadata server, so a laptop must skip it."""

    def number(name: str) -> int:
        return int(os.environ.get(name) or 1)

    slurm = "SLURM_STEP_NODELIST" in os.environ and number("SLURM_NTASKS") > 1
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    tpu = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return (
        slurm
        or number("OMPI_COMM_WORLD_SIZE") > 1
        or (kubernetes and importlib.util.find_spec("kubernetes") is not None)
        or (tpu and importlib.util.find_spec("libtpu") is not None)
    )


def describe(mesh: Mesh) -> str:
    """Devices and mesh in a line, as in "platform cpu, 8 devices (cpu), 1 process; mesh data 8, fsdp 1, tensor 1"."""
    device, count = mesh.devices.flat[0], jax.process_count()
    slices = number_of_slices(list(mesh.devices.flat))
    return (
        f"platform {device.platform}, {mesh.size} device{'s' * (mesh.size > 1)} ({device.device_kind}), "
        f"{f'{slices} slices, ' * (slices > 1)}{count} process{'es' * (count > 1)}; mesh "
        + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    )


def is_first() -> bool:
    """Whether this process writes."""
    return jax.process_index() == 0


def on_first(action: Callable[..., T], *arguments: Any) -> T | None:
    """Runs the action only in the first process; the others wait, fail if it fails, and return None.

    Raises:
      ValueError, OSError: what the action raises; ValueError in the others.
    """
    result, problem = None, None
    if is_first():
        try:
            result = action(*arguments)
        except (ValueError, OSError) as error:
            problem = error
    failed = agree(problem is not None)
    if problem is not None:
        raise problem
    if failed:
        raise ValueError("the first process of this run could not go on; what is wrong stands in its output.")
    return result


def agree(value: bool) -> bool:
    """Returns the first process's value in all processes."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def from_first(text: str | None, length: int) -> str:
    """Returns the first process's ASCII text of this length in all processes; the others' text is ignored."""
    letters = np.frombuffer((text or " ").ljust(length).encode(), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(letters)).decode() if jax.process_count() > 1 else text or ""


def numbers_from_first(numbers: Sequence[int] | None, length: int) -> list[int] | None:
    """Returns the first process's numbers, or None, in all processes; the others' are ignored."""
    if jax.process_count() == 1:
        return None if numbers is None else list(numbers)
    padded = np.asarray([numbers is not None, *(numbers or [0] * length)], np.int32)
    there, *found = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tolist()
    return found if there else None
