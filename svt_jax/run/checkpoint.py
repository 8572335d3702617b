"""Checkpoints by Orbax: parameters, optimizer state and the run's progress. Written in the background, atomically.

The newest `keep` and the best are kept. Orbax notices a missing or a shortened file, but not a changed byte. So each
checkpoint holds a digest of every array and of its own JSON; one that does not match its digests is damaged. Since a
folder may be renamed or copied, each also holds its step and its run. Each is read back before it counts as saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import type_handlers

from svt_jax.run import distributed
from svt_jax.run.literal_path import LiteralPath
from svt_jax.stores import StoreError, move

log = logging.getLogger(__name__)
# Orbax warns each reader that the folder is only read, which is what a reader asks for
logging.getLogger("absl").addFilter(lambda record: "directory is read only" not in str(record.msg))

_PARTS = ("params", "constants", "optimizer")
# By default Orbax cuts each replicated array into one slice for each device, and compiles a program for each slice. The
# first save of 80 small arrays from 8 devices took 28 s, and 0.3 s when slices below 1 MiB are not cut.
_ARRAYS = type_handlers.create_type_handler_registry(
    (jax.Array, type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20))
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. It holds no random state: randomness follows from the seed and the step's number.

    Attributes:
      params: trained parameters, an nnx state.
      constants: the model's other values: parameters that are not trained, and what a loss term keeps from step to step.
      optimizer: optax's state.
    """

    params: nnx.State
    constants: nnx.State
    optimizer: Any


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the earlier ones are whole."""


class DamagedError(Exception):
    """A checkpoint does not hold what was saved."""


class MisplacedError(ValueError):
    """A whole checkpoint lies in the place of another step's or another run's."""


class _UnreadableHereError(Exception):
    """One of many processes could not read its part of a checkpoint."""


@dataclasses.dataclass
class _NewestAndBest:
    """Which checkpoints Orbax keeps. (Its own best_fn would store the scores in files without a digest.)"""

    keep: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [step in steps[-self.keep :] or step == self.best for step in steps]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the folder of the checkpoints.
      keep: number of newest checkpoints to keep.
      run: the run's id. Each checkpoint holds it, and a checkpoint of another run is an error; None checks nothing.
      read_only: for a reader of a run that may still be writing; never removes anything.
    """

    def __init__(self, folder: Path, keep: int = 2, *, run: str | None = None, read_only: bool = False):
        self._kept = _NewestAndBest(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            read_only=read_only,
            # a reader has these values; Orbax warns of each that it has to set itself
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
            # runs in the background, before the folder receives its name and older ones are removed
            async_options=ocp.AsyncOptions(post_finalization_callback=self._read_back),
        )
        self._folder, self._run, self._read_only = folder, run, read_only
        self._written: _Written | None = None
        handlers = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=_ARRAYS) for name in _PARTS}
        self._manager = ocp.CheckpointManager(
            LiteralPath(folder.absolute()),
            options=options,
            item_handlers={**handlers, "record": ocp.JsonCheckpointHandler()},
        )

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the best score among the kept checkpoints; None before the first evaluation."""
        for step in self.steps[::-1]:
            try:
                best = self._read_record(step)["best"]
            except (MisplacedError, StoreError):
                raise
            except Exception as error:  # Orbax raises bare Exception for truncated data
                log.warning("the checkpoint of step %d is damaged (%s)", step, error)
                continue
            return best if best in self.steps else None
        return None

    def save(self, step: int, state: TrainState, progress: dict[str, Any], best: int | None) -> None:
        """Saves the state after `step` steps.

        Args:
          step: the step's number; must be later than those saved.
          state: the state, sharded over the devices in any way.
          progress: plain JSON.
          best: the step of the best score so far.
        Raises:
          CheckpointWriteError: if this one, or the previous one in the background, could not be written or read back.
        """
        self.wait()
        parts = _parts(state)
        record = {"step": step, "run": self._run, "progress": progress, "best": best, "digests": digests(parts)}
        try:
            self._write(step, parts, record)
        except Exception as error:
            raise self._write_error(error) from error

    def _write(self, step: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        self._kept.best = record["best"]
        self._written = _Written(step, {name: _smallest(part) for name, part in parts.items()}, record["digests"])
        items = {name: ocp.args.PyTreeSave(part) for name, part in parts.items()}
        items["record"] = ocp.args.JsonSave(sealed(record))
        saved = self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        assert saved, f"Orbax did not save step {step}; it has {self.steps}"

    def restore(self, like: TrainState, step: int | None = None) -> tuple[int, TrainState, dict[str, Any]]:
        """Restores the newest undamaged checkpoint, or that of `step`, as (step, state, progress).

        Args:
          like: abstract state: the shapes, dtypes and shardings to restore to. The checkpoint may have other shardings.
            If its optimizer is None, that part is not read.
        Raises:
          ValueError: if there is no checkpoint, or that of `step` is damaged.
          MisplacedError: if a checkpoint belongs to another step or another run.
          StoreError: if the store does not give it.
        """
        candidates = [step] if step is not None else self.steps[::-1]
        problems = []
        for candidate in candidates:
            try:
                found = candidate, *self._restore_step(candidate, like)
            except _UnreadableHereError as error:
                raise ValueError(
                    f"{error}. Remove that folder, and start all processes again to go on from the checkpoint before it."
                ) from error
            except (MisplacedError, StoreError):  # no damage: going back to an older one would hide what is wrong
                raise
            except Exception as error:  # Orbax raises bare Exception for truncated data
                problems.append(f"step {candidate}: {error}")
                reason = (str(error) or type(error).__name__).splitlines()[0]
                log.warning("the checkpoint of step %d is damaged (%s), trying the one before", candidate, reason)
                continue
            if not self._read_only:
                self._set_aside([step for step in self.steps if step > candidate])
            return found
        raise ValueError(
            f"no readable checkpoint in {self._folder} ({'; '.join(problems) or 'there is none'}). "
            "Restore the folder from a copy, or train under another run.name."
        )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames unreadable checkpoints, since Orbax would refuse to save their steps again.

        They are kept: the fault may be the file system's, and temporary.
        """

        def rename() -> None:
            for step in steps:
                names = (self._folder / f"unreadable-{step}-{n}" for n in itertools.count(1))
                aside = next(path for path in names if not path.exists())
                move(self._folder / str(step), aside)
                log.warning("put aside as %s", aside)

        if steps:
            distributed.on_first(rename)
            self._reload()

    def _reload(self) -> None:
        self._manager.reload()

    def _restore_step(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        unreadable = f"{self._folder / str(step)} cannot be read"
        try:
            record = self._read_record(step)
        except OSError as error:
            if jax.process_count() == 1:
                raise
            raise _UnreadableHereError(f"{unreadable} ({error})") from error
        targets = _parts(like)
        try:
            found = self._read_parts(step, targets, record)
        except Exception as error:
            if jax.process_count() == 1:
                raise
            # each process reads its own part: the others may have read theirs, and wait
            raise _UnreadableHereError(f"{unreadable} ({error})") from error
        for name, values in digests(found).items():
            if values != record["digests"][name]:
                raise DamagedError(f"its {name} are not what was saved")
        return dataclasses.replace(like, **found), record["progress"]

    def _read_parts(self, step: int, targets: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        args = {
            name: ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target))
            for name, target in targets.items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in targets}

    def _stored_record(self, step: int) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def _read_record(self, step: int) -> dict[str, Any]:
        record = checked(self._stored_record(step))
        their_step, their_run = record.get("step", step), record.get("run", self._run)  # earlier versions wrote neither
        if their_step != step or (self._run is not None and their_run != self._run):
            whose = "this run" if their_run == self._run else f"another run, {their_run}, and this is {self._run}"
            raise MisplacedError(
                f"{self._folder / str(step)} holds the checkpoint of step {their_step} of {whose}; allowed is "
                f"that of step {step} of the run itself. Put back what was there, or move the folder away."
            )
        return record

    def _read_back(self) -> None:
        """Reads part of what was just written: the record, and each part's metadata and smallest array."""
        assert self._written is not None
        written = self._written
        folder = self._manager.directory / f"{written.step}{ocp.utils.TMP_DIR_SUFFIX}"
        try:
            record = checked(ocp.JsonCheckpointHandler().restore(folder / "record"))
            read = record["step"] == written.step
            for name, (target, place) in written.samples.items():
                arguments = ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target))
                restored = ocp.PyTreeCheckpointHandler().restore(folder / name, args=arguments)
                leaf = jax.tree.leaves(restored, is_leaf=lambda leaf: leaf is ocp.PLACEHOLDER)[place]
                read = read and digests({name: leaf})[name] == [written.digests[name][place]]
        except Exception as error:
            raise DamagedError(f"what was written cannot be read back: {error}") from error
        if not read:
            raise DamagedError("what is read back is not what was written")

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointWriteError: if something could not be written in the background.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error

    def close(self) -> None:
        """As `wait`; afterwards nothing can be saved or restored."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> CheckpointWriteError:
        # keep the system's words from TensorStore's page of paths and addresses; keep other errors whole
        system = re.search(r"([^:]+) \[os_error_code=", str(error))
        why = system[1].strip() if system else " ".join(str(getattr(error, "strerror", None) or error).split())
        return CheckpointWriteError(
            f"a checkpoint could not be written to {self._folder} ({why}); those before it are whole. Make "
            "room, or mend what is wrong, and start the same command again to resume."
        )


def last_good(checkpoints: Checkpoints) -> str:
    """Text for a message: which checkpoint is the last good one."""
    steps = checkpoints.steps
    return f"the checkpoint of step {steps[-1]} is the last good one" if steps else "no checkpoint had been written"


@dataclasses.dataclass(frozen=True)
class _Written:
    """The samples to read back from a checkpoint.

    Attributes:
      step: the checkpoint's step.
      samples: for each part, a tree to restore to in which only one leaf is not left out, and that leaf's place.
      digests: digests of all arrays.
    """

    step: int
    samples: dict[str, tuple[Any, int]]
    digests: dict[str, list[int]]


def _smallest(part: Any) -> tuple[Any, int]:
    leaves, structure = jax.tree.flatten(part)
    place = min(range(len(leaves)), key=lambda n: leaves[n].size)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sample = jax.ShapeDtypeStruct(leaves[place].shape, leaves[place].dtype, sharding=here)
    return jax.tree.unflatten(structure, [sample if n == place else ocp.PLACEHOLDER for n in range(len(leaves))]), place


def _parts(state: TrainState) -> dict[str, Any]:
    """The parts of a state that are saved."""
    parts = {name: getattr(state, name) for name in _PARTS}
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def digests(parts: dict[str, Any]) -> dict[str, list[int]]:
    """A number for each array of each part. Any changed bit changes it; other changes do so but for one case in 2^32.

    It is a sum modulo 2^32 of the array's words, each multiplied by its own odd number. So it is exactly the same for
    any sharding of the array.
    """
    return {name: [int(value) for value in values] for name, values in jax.device_get(_digests(parts)).items()}


@jax.jit
def _digests(parts: dict[str, Any]) -> dict[str, list[jax.Array]]:
    return {name: [_digest(leaf) for leaf in jax.tree.leaves(part)] for name, part in parts.items()}


def _digest(x: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # an 8-byte type adds a dimension
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):  # reshape and arange would gather a sharded array
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # multiples of an odd constant are scattered over the numbers, so equal changes do not cancel
    return jnp.sum(words * (place * np.uint32(2 * 0x9E3779B1 & 0xFFFFFFFF) + np.uint32(1)), dtype=jnp.uint32)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its own digest, as it is stored."""
    return {**record, "sha256": _sha256(record)}


def checked(read: Any) -> dict[str, Any]:
    """The record without its digest. Raises DamagedError if they do not fit."""
    record = dict(read)
    if record.pop("sha256", None) != _sha256(record):
        raise DamagedError("its record is not what was saved")
    return record


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def abstract(state: Any, shardings: Any) -> Any:
    """A state's shapes and dtypes, with the shardings to restore it to."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )
