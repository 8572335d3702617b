"""Shards of batches over the devices of many processes: each process makes the rows that its own devices hold."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding

from svt_jax.data.batching import Batch


def rows_here(sharding: NamedSharding, num_rows: int) -> np.ndarray:
    """Which rows of a global batch this process's devices hold, ascending."""
    shards = sharding.addressable_devices_indices_map((num_rows,)).values()
    return np.unique(np.concatenate([np.arange(num_rows)[index] for index in shards if index is not None]))


def global_batch(batch: Batch, sharding: NamedSharding, num_rows: int) -> dict[str, jax.Array]:
    """The batch, sharded over the devices of all processes.

    Args:
      batch: arrays of the rows that this process holds (`rows_here`), or of all rows.
      sharding: the rows' sharding.
      num_rows: number of rows of the global batch.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, values, (num_rows, *values.shape[1:]))
        for name, values in batch.items()
    }
