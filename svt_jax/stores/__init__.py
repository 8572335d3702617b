"""Object stores: turns a written path into a path object, and holds what differs where there is no disk.

A path is local, or `gs://bucket/...` or `s3://bucket/...`. A store has no folders, no rename, no append and no file
locks. An object appears whole or not at all, and can be created on the condition that it does not exist. So:

* `write_whole` and `add_folder` put whole objects; a folder needs not be made;
* what other libraries write goes to a local folder first (`writable`), what they read comes to one (`readable`);
* lines of a log become objects of their own until the run ends (`run.line_files`);
* the lock is an object that only one process can create (`run.store_lock`);
* a checkpoint counts once its last object is there (`run.store_checkpoint`).

The extras `gcs` and `s3` install what this needs: fsspec's gcsfs or s3fs. They are imported with the first call
of a store. Credentials are those of the store's own tools.
"""

from svt_jax.stores.calls import PATIENCE, StoreError, patiently
from svt_jax.stores.copies import add_folder, move, readable, readable_file, remove, writable
from svt_jax.stores.paths import (
    StorePath,
    as_path,
    check_name,
    check_reachable,
    in_store,
    local_path,
    make_folder,
)

__all__ = [
    "PATIENCE",
    "StoreError",
    "StorePath",
    "add_folder",
    "as_path",
    "check_name",
    "check_reachable",
    "in_store",
    "local_path",
    "make_folder",
    "move",
    "patiently",
    "readable",
    "readable_file",
    "remove",
    "writable",
]
