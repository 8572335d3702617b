"""Checkpoints in an object store: whole objects, and a last one that makes them count.

Orbax writes Google's store through TensorStore, but not S3, and commits by a rename or by a file of its own; its reader
keeps lists of objects, and needs rights on the bucket itself. Here one way serves both stores and any number of hosts:

N/ATTEMPT-P-PART-K.safetensors  arrays that process P holds of a part of the state (params, constants, optimizer)
N/ATTEMPT-P.json                the names and sizes of these, the last object of process P
N/record.json                   the record; written by the first process once it has seen the objects of all

Each process writes only the shards of its own devices, and only one copy of each. The hosts share no disk: they meet in
the store. A save that ends early leaves objects of an attempt without a record, which count for nothing and which the
next start removes. Restoring reads any number of shards into any other sharding.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from svt_jax.run import distributed
from svt_jax.run.checkpoint import Checkpoints, DamagedError, sealed
from svt_jax.run.run_files import RECORD, saved_steps
from svt_jax.stores import StoreError, StorePath, in_store

log = logging.getLogger(__name__)

_MOST_BYTES = 2**27
"""Size of an object with arrays: large enough for the bandwidth, small enough to be made in memory and sent again."""
_LETTERS = 8
OTHERS_SECONDS = 600.0
"""For so long the first process waits for the others' objects of a checkpoint."""


def open_checkpoints(
    folder: Path,
    keep: int = 2,
    *,
    run: str | None = None,
    read_only: bool = False,
    fence: Callable[[], None] | None = None,
) -> Checkpoints:
    """The checkpoints of a run, on a disk or in an object store; the arguments are those of `Checkpoints`.

    Args:
      fence: called before a checkpoint in a store counts; raises if this process no longer holds the folder.
    """
    if in_store(folder):
        return StoreCheckpoints(folder, keep, run=run, read_only=read_only, fence=fence)
    return Checkpoints(folder, keep, run=run, read_only=read_only)


class StoreCheckpoints(Checkpoints):
    """As `Checkpoints`, in an object store."""

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        *,
        run: str | None = None,
        read_only: bool = False,
        fence: Callable[[], None] | None = None,
    ):
        self._folder, self._run, self._read_only = folder, run, read_only
        self._store, self._keep, self._fence = cast(StorePath, folder), keep, fence
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            distributed.on_first(self._remove_unfinished)

    @property
    def steps(self) -> list[int]:
        return saved_steps(self._folder)

    def _remove_unfinished(self) -> None:
        steps = self.steps
        for name in self._store.objects():
            step = name.split("/")[0]
            if step.isdigit() and int(step) not in steps:
                (self._store / name).unlink(missing_ok=True)

    def _write(self, step: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        attempt = distributed.from_first(uuid.uuid4().hex[:_LETTERS], _LETTERS)
        record = sealed({**record, "attempt": attempt, "processes": jax.process_count()})
        shards = {name: _own_shards(part) for name, part in parts.items()}
        self._pending = self._worker.submit(self._put, step, attempt, shards, record)

    def _put(self, step: int, attempt: str, shards: dict[str, dict[str, np.ndarray]], record: dict[str, Any]) -> None:
        """Runs beside the steps of training."""
        folder, process = self._store / str(step), jax.process_index()
        sizes = {}
        for part, arrays in shards.items():
            for number, group in enumerate(_groups(arrays)):
                name, content = f"{attempt}-{process}-{part}-{number}.safetensors", save(group)
                (folder / name).write_bytes(content)
                sizes[name] = len(content)
        (folder / f"{attempt}-{process}.json").write_bytes(json.dumps(sizes).encode())
        if process == 0:
            self._commit(folder, attempt, record)

    def _commit(self, folder: StorePath, attempt: str, record: dict[str, Any]) -> None:
        until = time.monotonic() + OTHERS_SECONDS
        indexes = [f"{attempt}-{process}.json" for process in range(record["processes"])]
        while missing := [name for name in indexes if name not in (found := folder.objects())]:
            if time.monotonic() > until:
                raise StoreError(folder, f"no sign of {', '.join(missing)}", "See why those processes stopped.")
            time.sleep(0.5)
        sizes = {name: size for index in indexes for name, size in json.loads((folder / index).read_bytes()).items()}
        wrong = [name for name, size in sizes.items() if name not in found or found[name]["size"] != size]
        if wrong:
            raise DamagedError(f"{folder}: the store does not hold what was written ({', '.join(wrong)})")
        if self._fence is not None:
            self._fence()
        (folder / RECORD).write_bytes(json.dumps(record).encode())
        best, steps = record["best"], self.steps
        for step in steps[: -self._keep]:
            if step != best:
                self._remove(step)

    def _remove(self, step: int) -> None:
        (self._store / str(step) / RECORD).unlink(missing_ok=True)  # first: from here on it does not count
        for name in (self._store / str(step)).objects():
            (self._store / str(step) / name).unlink(missing_ok=True)

    def _reload(self) -> None:
        pass

    def _stored_record(self, step: int) -> Any:
        return json.loads((self._store / str(step) / RECORD).read_bytes())

    def _read_parts(self, step: int, targets: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        folder, attempt = self._store / str(step), record["attempt"]
        names = [
            name
            for process in range(record["processes"])
            for name in json.loads((folder / f"{attempt}-{process}.json").read_bytes())
        ]
        found = {}
        for part, target in targets.items():
            shards: dict[str, list[tuple[list[int], np.ndarray]]] = {}
            for name in names:
                if name.split("-")[2] == part:
                    for key, array in _load(folder / name).items():
                        leaf, _, starts = key.rpartition("@")
                        shards.setdefault(leaf, []).append(([int(each) for each in starts.split(",") if each], array))
            found[part] = jax.tree_util.tree_map_with_path(
                lambda path, like, shards=shards: _assembled(
                    jax.tree_util.keystr(path), like, shards.get(jax.tree_util.keystr(path), [])
                ),
                target,
            )
        return found

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._write_error(error) from error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._worker.shutdown()


def _own_shards(part: Any) -> dict[str, np.ndarray]:
    """The shards that this process writes, by the leaf's name and the place where the shard begins.

    They are copies: a view would keep the next step from taking over the buffers.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(part):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                starts = ",".join(str(index.start or 0) for index in shard.index)
                found[f"{jax.tree_util.keystr(path)}@{starts}"] = np.array(shard.data, copy=True)
    return found


def _groups(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    group: dict[str, np.ndarray] = {}
    size = 0
    for name, array in arrays.items():
        if group and size + array.nbytes > _MOST_BYTES:
            yield group
            group, size = {}, 0
        group[name] = array
        size += array.nbytes
    if group:
        yield group


def _load(path: StorePath) -> dict[str, np.ndarray]:
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise DamagedError(f"{path.name} is damaged ({error})") from error


def _assembled(name: str, like: jax.ShapeDtypeStruct, shards: list[tuple[list[int], np.ndarray]]) -> jax.Array:
    whole = np.empty(like.shape, like.dtype)
    for starts, array in shards:
        place = tuple(slice(start, start + size) for start, size in zip(starts, array.shape, strict=True))
        with contextlib.suppress(ValueError):  # it does not fit; then the sum does not either
            whole[place] = array
    if any(array.dtype != like.dtype for _, array in shards) or sum(array.size for _, array in shards) != math.prod(
        like.shape
    ):
        raise DamagedError(f"{name} is not whole: its shards do not make an array {like.dtype}{list(like.shape)}")
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: np.array(whole[index]))
