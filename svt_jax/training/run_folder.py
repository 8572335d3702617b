"""The folder of a run: what is written there, and in what form.

config.yaml      the complete config, as run
manifest.json    versions, devices, mesh, seed, hash of the weights, git commit
model/           config.json and tokenizer: with a checkpoint, all that evaluation needs
metrics.jsonl    a line each log.every_steps steps
checkpoints/     Orbax
results.json     scores, when the run is complete
report.html      the same to look at
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from svt_jax.models.config import EncoderConfig, read_config
from svt_jax.training.config import TrainConfig

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


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def read_results(self) -> dict[str, Any]:
        return json.loads(self.results.read_text(encoding="utf-8"))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a killed run left half written is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]


def run_name(config: TrainConfig) -> str:
    """The folder's name: `run.name`, or one made from task, model, function and seed."""
    if config.run.name is not None:
        return config.run.name
    model = "" if config.model.path == "demo" else "-" + Path(config.model.path).resolve().name
    function = "plain" if not config.svt.enabled else config.svt.function
    return f"{config.data.task}{model}-{function}-seed{config.run.seed}"


def open_run_folder(config: TrainConfig) -> RunFolder:
    """Creates the folder, or opens the one that holds this same run.

    Raises:
      ValueError: if the folder holds another run or foreign files, or cannot be written.
    """
    folder = RunFolder(Path(config.run.output_dir) / run_name(config))
    if folder.config.is_file():
        other = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        theirs, ours = _identity(other), _flat(config.identity())
        differing = [f"{key} {theirs.get(key)!r} -> {ours.get(key)!r}" for key in ours if theirs.get(key) != ours[key]]
        if differing:
            raise ValueError(
                f"{folder.path} holds another run's config ({'; '.join(differing)}); a folder holds one run. Choose another --run.name."
            )
        if config.checkpoint.resume == "never" and folder.checkpoints.is_dir():
            raise ValueError(
                f"{folder.path} holds this run already and checkpoint.resume is 'never'. Choose another --run.name, or resume with auto."
            )
    elif folder.path.is_dir() and any(folder.path.iterdir()):
        raise ValueError(f"{folder.path} is not empty and holds no run. Choose another --run.name or --run.output_dir.")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.config.is_file():
            write_atomically(folder.config, yaml.safe_dump(config.to_dict(), sort_keys=False))
    except OSError as error:
        raise ValueError(
            f"{folder.path} cannot be written ({error.strerror}). Choose another --run.output_dir."
        ) from error
    return folder


def read_run(path: str | Path) -> tuple[RunFolder, dict[str, Any], EncoderConfig]:
    """A run's folder, its config as plain values, and its architecture.

    Raises:
      ValueError: if the folder holds no run.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no run (no config.yaml); allowed is a folder that train.py wrote. Check --run.")
    return folder, yaml.safe_load(folder.config.read_text(encoding="utf-8")), read_config(folder.model)


def save_model_description(folder: RunFolder, encoder: EncoderConfig, tokenizer: Any) -> None:
    """Writes model/: config.json and the tokenizer."""
    folder.model.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder.model)
    write_atomically(folder.model / "config.json", _json(encoder.to_hf()))


def write_manifest(folder: RunFolder, config: TrainConfig, mesh: Mesh, weights: Path | None) -> None:
    """Writes manifest.json: what is needed to tell whether two runs are comparable."""
    manifest = {
        "command": sys.argv,
        "seed": config.run.seed,
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": device_description(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "mesh": dict(mesh.shape),
        "weights_sha256": _hash_weights(weights),
        "git_commit": _git_commit(),
    }
    write_atomically(folder.manifest, _json(manifest))


def write_results(folder: RunFolder, results: dict[str, Any]) -> None:
    write_atomically(folder.results, _json(results))


def device_description() -> str:
    """The kind of device and how many, as in "cpu x 8"."""
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}"


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class MetricsWriter:
    """Appends lines to metrics.jsonl; on resuming, drops the lines of steps that will be done again."""

    def __init__(self, folder: RunFolder, start_step: int):
        kept = [line for line in folder.read_metrics() if line["step"] <= start_step]
        write_atomically(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = folder.metrics.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _identity(stored: dict[str, Any]) -> dict[str, Any]:
    values = {section: stored[section] for section in ("model", "svt", "data", "optim")}
    return _flat({**values, "seed": stored["run"]["seed"]})


def _hash_weights(folder: Path | None) -> str | None:
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
