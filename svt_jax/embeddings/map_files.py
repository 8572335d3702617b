"""The files of a map of `maps.py`, and the rule that no other file is overwritten."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from svt_jax.host import open_to_umask


@contextlib.contextmanager
def replacing(folder: Path, kind: str, kind_there: str | None, files: tuple[str, ...]) -> Iterator[None]:
    """Goes around the writing of files. The last file makes them whole: it is removed first and written last.

    Args:
      folder: made if it does not exist.
      kind: the class of the map that is written.
      kind_there: the class of the map whose files are there already, if any.
      files: all that will be written.
    Raises:
      ValueError: if the folder holds anything but such files of the same kind, or cannot be written.
    """
    try:
        there = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
        if there and not (set(there) <= set(files) and kind_there == kind):
            raise ValueError(
                f"{folder} holds {', '.join(there[:5])}{' ...' * (len(there) > 5)}; allowed are a new or empty folder, or "
                f"only {' and '.join(files)} of an earlier {kind}. Choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files[-1]).unlink(missing_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be written ({error}). Choose another folder.") from error


def saved_kind(folder: Path) -> str | None:
    """Returns the class of the map that was saved in a folder; None if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / "map.json").read_text(encoding="utf-8"))["kind"])
    return None


def exported_kind(folder: Path) -> str | None:
    """Returns the class of the map that `write_dense` wrote to a folder; None if there is none."""
    with (
        contextlib.suppress(OSError, SafetensorError),
        safe_open(folder / "model.safetensors", framework="numpy") as tensors,
    ):
        return (tensors.metadata() or {}).get("svt_jax")
    return None


def write_dense(folder: Path, kind: str, matrix: np.ndarray, offset: np.ndarray) -> None:
    """Writes x -> x matrix + offset as a sentence-transformers Dense module; see `CorpusMap.export_sentence_transformers`.

    Args:
      folder, kind: as in `replacing`.
      matrix: float32[D, K].
      offset: float32[K].
    """
    tensors = {"linear.weight": np.ascontiguousarray(matrix.T)}  # safetensors writes the buffer, whatever the strides
    if offset.any():
        tensors["linear.bias"] = offset
    config = {
        "in_features": matrix.shape[0],
        "out_features": matrix.shape[1],
        "bias": "linear.bias" in tensors,
        "activation_function": "torch.nn.modules.linear.Identity",  # the default is tanh
    }
    with replacing(folder, kind, exported_kind(folder), ("model.safetensors", "config.json")):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "svt_jax": kind})
        open_to_umask(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
