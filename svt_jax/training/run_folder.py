"""The folder of a run: what is written there, and in what form.

config.yaml      the complete config, as run
manifest.json    versions, devices, mesh, seed, names of the classes, hash of the weights, git commit
model/           config.json and tokenizer: with a checkpoint, all that evaluation needs
metrics.jsonl    a line each log.every_steps steps
spectrum.jsonl   a reading of the probe (evaluation.probe) after the last step, and each log.spectrum_every_steps steps
tensorboard/     the same for TensorBoard, with log.tensorboard
checkpoints/     Orbax
results.json     scores, when the run is complete
report.html      the same to look at
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from svt_jax.data.glue import Split, Task
from svt_jax.data.tokenizer import Tokens, hash_tokens
from svt_jax.models.config import MODEL_KEYS_OF_SPEED, EncoderConfig, read_config
from svt_jax.models.files import hash_weights
from svt_jax.training.config import TrainConfig
from svt_jax.training.run_lock import LOCK_NAME, RunLock
from svt_jax.yaml_files import load_values

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
    def spectrum(self) -> Path:
        return self.path / "spectrum.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

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
        """The lines of metrics.jsonl."""
        return read_lines(self.metrics)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; a last one that a killed run left half written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def run_name(config: TrainConfig) -> str:
    """The folder's name: `run.name`, or one made from task, model, function and seed."""
    if config.run.name is not None:
        return config.run.name
    model = "" if config.model.path == "demo" else "-" + Path(config.model.path).resolve().name
    function = "plain" if not config.svt.enabled else config.svt.function
    return f"{config.data.task}{model}-{function}-seed{config.run.seed}"


def run_path(config: TrainConfig) -> RunFolder:
    """The folder of this config's run, whatever is there."""
    return RunFolder(Path(config.run.output_dir) / run_name(config))


def find_run(config: TrainConfig) -> RunFolder:
    """The folder of this config's run, which may not exist yet; nothing is written.

    Raises:
      ValueError: if the folder holds another run or foreign files.
    """
    folder = run_path(config)
    if folder.config.is_file():
        theirs, ours = _identity(_read_config(folder)), _flat(_plain(config.identity()))
        differing = [
            f"{key} {theirs.get(key)!r} -> {ours.get(key)!r}"
            for key in ours | theirs
            if theirs.get(key) != ours.get(key)
        ]
        if differing:
            raise ValueError(
                f"{folder.path} holds another run's config ({'; '.join(differing)}); a folder holds one run. "
                "Choose another --run.name."
            )
        if config.checkpoint.resume == "never" and any(folder.checkpoints.glob("[0-9]*")):
            raise ValueError(
                f"{folder.path} holds this run already and checkpoint.resume is 'never'. "
                "Choose another --run.name, or resume with auto."
            )
    elif folder.path.exists() and not (folder.path.is_dir() and all(map(_is_left_by_a_start, folder.path.iterdir()))):
        raise ValueError(f"{folder.path} exists and holds no run. Choose another --run.name or --run.output_dir.")
    return folder


def create(
    folder: RunFolder, config: TrainConfig, manifest: dict[str, Any], encoder: EncoderConfig, tokenizer: Any
) -> RunLock:
    """Writes config, manifest and model description of a run that starts, or notes in the manifest that it resumes.

    Returns:
      the lock on the folder, which is to be released when the run ends.
    Raises:
      ValueError: if another process trains in the folder, a resumed run would start from other weights, classes or data, or
        the folder cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder.path)
        if folder.manifest.is_file():
            first = _read_manifest(folder)
            if first["weights_sha256"] != manifest["weights_sha256"]:
                raise ValueError(
                    f"{folder.path} began with weights {first['weights_sha256']} and model.path now holds "
                    f"{manifest['weights_sha256']}. Restore the model, or choose another --run.name."
                )
            if first["classes"] != manifest["classes"]:
                raise ValueError(
                    f"{folder.path} began with the classes {first['classes']} and the training file now has "
                    f"{manifest['classes']}. Restore the file, or choose another --run.name."
                )
            if changed := [
                split
                for split, theirs in first.get("data_sha256", {}).items()
                if theirs != manifest["data_sha256"].get(split)
            ]:
                raise ValueError(
                    f"{folder.path} began with other tokens or labels in {', '.join(changed)} than data.source now gives. "
                    "Restore the files, or choose another --run.name."
                )
            manifest = {**first, "resumed": [*first.get("resumed", []), manifest]}
        # as run: mesh, logging and checkpoint settings may change when a run is resumed
        write_atomically(folder.config, yaml.safe_dump(config.to_dict(), sort_keys=False))
        write_atomically(folder.manifest, _json(manifest))
        folder.model.mkdir(exist_ok=True)
        tokenizer.save_pretrained(folder.model)
        write_atomically(folder.model / "config.json", _json(encoder.to_hf()))
        return lock
    except OSError as error:
        raise ValueError(
            f"{folder.path} cannot be written ({error.strerror}). Choose another --run.output_dir."
        ) from error


def read_run(path: str | Path) -> tuple[RunFolder, dict[str, Any], EncoderConfig]:
    """A run's folder, its config as plain values, and its architecture.

    Raises:
      ValueError: if the folder holds no run.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no run (no config.yaml); allowed is a folder that train.py wrote. Check --run.")
    config = _read_config(folder)
    _identity(config)  # raises if it is not a run's
    try:
        for section in dataclasses.fields(TrainConfig):
            section.default_factory(**config.get(section.name, {}))  # type: ignore[operator]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.config} is not one that a run wrote ({error}). Restore it from a copy.") from error
    return folder, config, read_config(folder.model)


def read_classes(folder: RunFolder) -> list[str] | None:
    """The names of a run's classes in order of their numbers; None for a regression."""
    return _read_manifest(folder)["classes"]


def _read_manifest(folder: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads(folder.manifest.read_text(encoding="utf-8"))
        missing = [key for key in ("weights_sha256", "classes") if key not in found]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder.manifest} is not one that a run wrote ({error}). Restore it from a copy.") from error
    if missing:
        raise ValueError(
            f"{folder.manifest} is not one that a run wrote (it lacks {', '.join(missing)}). Restore it from a copy."
        )
    return found


def make_manifest(
    config: TrainConfig, mesh: Mesh, weights: Path | None, task: Task, tokens: Mapping[Split, Tokens]
) -> dict[str, Any]:
    """What is needed to tell whether two runs are comparable, and to read the model's outputs."""
    return {
        "command": sys.argv,
        "seed": config.run.seed,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": device_description(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "mesh": dict(mesh.shape),
        "classes": None if task.labels is None else list(task.labels),
        "weights_sha256": None if weights is None else hash_weights(weights),
        "data_sha256": {split: hash_tokens(each) for split, each in tokens.items()},
        "git_commit": _git_commit(),
    }


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


def _is_left_by_a_start(path: Path) -> bool:
    """Whether a run that was killed before it had written its config can have left this file."""
    return path.name in (LOCK_NAME, "config.yaml.tmp")


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from YAML."""
    return yaml.safe_load(yaml.safe_dump(values))


def _read_config(folder: RunFolder) -> dict[str, Any]:
    try:
        return load_values(folder.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder.config} is not YAML. Choose another --run.name.") from error


def _identity(stored: dict[str, Any]) -> dict[str, Any]:
    try:
        values = {section: stored[section] for section in ("model", "svt", "data", "optim")}
        values["model"] = {key: value for key, value in values["model"].items() if key not in MODEL_KEYS_OF_SPEED}
        return _flat({**values, "seed": stored["run"]["seed"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the folder's config.yaml is not one that a run wrote. Choose another folder.") from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # ours, when it runs from a folder where it was not installed
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
