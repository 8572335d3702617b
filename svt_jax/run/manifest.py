"""manifest.json: decides whether runs are comparable, whether a run may resume, and whether its files are its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from svt_jax.data.glue import Split, Task
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens, hash_tokens
from svt_jax.models.files import hash_weights
from svt_jax.run.config import TrainConfig
from svt_jax.run.plugin import plugin_digest

ID_LETTERS = 32
_PACKAGES = (
    "svt_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "numpy",
    "scipy",
)


def make_manifest(
    config: TrainConfig,
    mesh: Mesh,
    weights: Path | None,
    task: Task,
    tokens: Mapping[Split, Tokens],
    shape: Shape | None,
) -> dict[str, Any]:
    """Collects what tells whether two runs are comparable, and what is needed to read the model's outputs."""
    return {
        "run_id": uuid.uuid4().hex,  # ID_LETTERS letters
        "command": sys.argv,
        "seed": config.run.seed,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": device_description(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "mesh": dict(mesh.shape),
        "packed": None if shape is None else dataclasses.asdict(shape),
        "classes": None if task.labels is None else list(task.labels),
        "weights_sha256": None if weights is None else hash_weights(weights),
        "data_sha256": {split: hash_tokens(each) for split, each in tokens.items()},
        "plugin_sha256": plugin_digest(config.run.plugin),
        "git_commit": _git_commit(),
    }


def device_description() -> str:
    """Kind and number of devices, as in "cpu x 8"."""
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a run's manifest.json.

    Raises:
      ValueError: if the file is missing, or is not a manifest.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; a run's folder has one. Restore it from a copy.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("weights_sha256", "classes") if key not in found]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not one that a run wrote ({error}). Restore it from a copy.") from error
    if missing:
        raise ValueError(f"{path} is not one that a run wrote (it lacks {', '.join(missing)}). Restore it from a copy.")
    return found


def resumed(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a resumed run: its first manifest, with a note of this start.

    Args:
      path: the file of the first manifest.
      manifest: the manifest of this start.
    Raises:
      ValueError: if the run began with other weights, classes or data.
    """
    first = read_manifest(path)
    if first["weights_sha256"] != manifest["weights_sha256"]:
        raise ValueError(
            f"{path.parent} began with weights {first['weights_sha256']} and model.path now holds "
            f"{manifest['weights_sha256']}. Restore the model, or choose another --run.name."
        )
    if first["classes"] != manifest["classes"]:
        raise ValueError(
            f"{path.parent} began with the classes {first['classes']} and the training file now has "
            f"{manifest['classes']}. Restore the file, or choose another --run.name."
        )
    if (began := first.get("plugin_sha256")) and began != manifest["plugin_sha256"]:
        raise ValueError(
            f"{path.parent} began with another plugin than run.plugin now is ({began[:12]} and "
            f"{(manifest['plugin_sha256'] or 'none')[:12]}). Restore the file, or choose another --run.name."
        )
    data = first.get("data_sha256", {})
    if changed := [split for split, theirs in data.items() if theirs != manifest["data_sha256"].get(split)]:
        raise ValueError(
            f"{path.parent} began with other tokens or labels in {', '.join(changed)} than data.source now gives. "
            "Restore the files, or choose another --run.name."
        )
    again = {key: value for key, value in manifest.items() if key != "run_id"}
    return {"run_id": manifest["run_id"], **first, "resumed": [*first.get("resumed", []), again]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # our own package, if it runs from a folder without installation
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
