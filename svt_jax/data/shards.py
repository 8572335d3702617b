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


ROWS = ("ids", "token_types", "segment", "position")
"""Arrays of a packed batch whose first dimension is rows; that of all others is examples."""


def global_batch(batch: Batch, sharding: NamedSharding, num_rows: int, num_examples: int) -> dict[str, jax.Array]:
    """The batch, sharded over the devices of all processes.

    Args:
      batch: arrays of what this process holds (`rows_here`), or of the whole batch.
      sharding: the sharding of rows and of examples.
      num_rows, num_examples: their numbers in the global batch.
    """
    return {
        name: jax.make_array_from_process_local_data(
            sharding, values, (num_rows if name in ROWS else num_examples, *values.shape[1:])
        )
        for name, values in batch.items()
    }
