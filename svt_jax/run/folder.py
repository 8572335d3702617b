"""The folder of a run: which files it holds, and in what format.

config.yaml      the complete config, as run
manifest.json    the run's id, versions, devices, mesh, seed, class names, and hashes of weights, data and its own files
model/           config.json and tokenizer; with a checkpoint, all that evaluation needs
metrics.jsonl    a line after each log.every_steps steps
spectrum.jsonl   a reading of the probe (evaluation.probe) after the last step, and each log.spectrum_every_steps steps
tensorboard/     the same for TensorBoard, with log.tensorboard
profile/         a trace of some steps, with log.profile_steps
checkpoints/     Orbax's checkpoints; in an object store, those of `store_checkpoint`
results.json     scores, once the run is complete
report.html      the same as a page
before-1/        files of an attempt that ended before its first checkpoint, or whose checkpoints were removed
.lock            the lock; in an object store, .lock-1, .lock-2, ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from svt_jax.data.packing import Shape
from svt_jax.models.config import EncoderConfig, read_config
from svt_jax.run.config import TrainConfig, identity
from svt_jax.run.line_files import join_parts, read_lines
from svt_jax.run.literal_path import check_storable
from svt_jax.run.lock import is_lock, lock_folder
from svt_jax.run.manifest import read_manifest, resumed
from svt_jax.run.plugin import load_recorded
from svt_jax.run.run_files import check_files, file_digests, put_aside, saved_steps
from svt_jax.run.store_lock import StoreLock
from svt_jax.stores import as_path, check_reachable, make_folder, writable
from svt_jax.writing import write_whole, writing
from svt_jax.yaml_files import load_values

log = logging.getLogger(__name__)


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
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(saved_steps(self.checkpoints))

    def read_results(self) -> dict[str, Any]:
        return json.loads(self.results.read_text(encoding="utf-8"))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.metrics)


def run_name(config: TrainConfig) -> str:
    """The folder's name: `run.name`, or a name made from task, model, function and seed."""
    if config.run.name is not None:
        return config.run.name
    model = "" if config.model.path == "demo" else "-" + as_path(config.model.path).resolve().name
    function = "plain" if not config.svt.enabled else config.svt.function
    return f"{config.data.task}{model}-{function}-seed{config.run.seed}"


def run_path(config: TrainConfig) -> RunFolder:
    """The folder of this config's run, whatever it holds."""
    return RunFolder(as_path(config.run.output_dir) / run_name(config))


def find_run(config: TrainConfig) -> RunFolder:
    """The folder of this config's run, which may not exist yet; writes nothing.

    A folder of a failed start, or of a run that ended before its first checkpoint, is free for any config.

    Raises:
      ValueError: if the folder holds another run or other files, or the run's own files have changed.
      StoreError: if it lies in a store that cannot be reached.
    """
    folder = run_path(config)
    check_storable(folder.checkpoints)
    check_reachable(folder.path)
    if folder.config.is_file():
        theirs, ours = _identity(_read_config(folder)), identity(_plain(config.to_dict()))
        if folder.has_checkpoint and folder.manifest.is_file():
            _check_files(folder, theirs)
        differing = [
            f"{key} {theirs.get(key)!r} -> {ours.get(key)!r}"
            for key in ours | theirs
            if theirs.get(key) != ours.get(key)
        ]
        is_bound = folder.has_checkpoint or folder.results.is_file() or not any(map(is_lock, folder.path.iterdir()))
        if differing and is_bound:
            raise ValueError(
                f"{folder.path} holds another run's config ({'; '.join(differing)}); a folder holds one run. "
                "Choose another --run.name."
            )
        if config.checkpoint.resume == "never" and folder.has_checkpoint:
            raise ValueError(
                f"{folder.path} holds this run already and checkpoint.resume is 'never'. "
                "Choose another --run.name, or resume with auto."
            )
    elif folder.path.exists() and not (folder.path.is_dir() and all(map(_is_left_by_a_start, folder.path.iterdir()))):
        raise ValueError(f"{folder.path} exists and holds no run. Choose another --run.name or --run.output_dir.")
    return folder


def create(
    folder: RunFolder, config: TrainConfig, manifest: dict[str, Any], encoder: EncoderConfig, tokenizer: Any
) -> FileLock | StoreLock:
    """Writes config, manifest and model description of a new run, or notes in the manifest that it resumes.

    Returns:
      the lock on the folder; release it when the run ends.
    Raises:
      ValueError: if another process trains in the folder, a resumed run would start from other weights, classes or data,
        files of the run have changed, or the folder cannot be written.
    """
    try:
        make_folder(folder.path)
        lock = lock_folder(folder.path)
    except OSError as error:
        raise ValueError(
            f"{folder.path} cannot be written ({error.strerror or error}). Choose another --run.output_dir."
        ) from error
    with contextlib.ExitStack() as failing, writing(folder.path, "Make room, or choose another --run.output_dir."):
        failing.callback(lock.release)
        find_run(config)  # again: another process may have written until now
        if folder.has_checkpoint:
            manifest = resumed(folder.manifest, manifest)
        else:
            _put_aside(folder, config)
        # the settings in use: a resumed run may change mesh, logging and checkpoint settings
        write_whole(folder.config, yaml.safe_dump(config.to_dict(), sort_keys=False))
        if "files_sha256" not in manifest:
            _write_model(folder, encoder, tokenizer)
            manifest["files_sha256"] = file_digests(folder.path, _identity(_read_config(folder)))
        write_whole(folder.manifest, _json(manifest))  # written last: if it exists, the other files are whole
        failing.pop_all()
    return lock


def _put_aside(folder: RunFolder, config: TrainConfig) -> None:
    """Keeps the files of an attempt that this run cannot continue, and says so."""
    logs = [folder.metrics, folder.spectrum, folder.results, folder.report]
    for lines in (folder.metrics, folder.spectrum):
        join_parts(lines)
    is_other = folder.config.is_file() and _identity(_read_config(folder)) != identity(_plain(config.to_dict()))
    if is_other or any(path.is_file() and path.read_bytes() for path in logs):
        aside = put_aside(folder.path, [*logs, folder.tensorboard, folder.model], [folder.config, folder.manifest])
        log.warning(
            "%s has no checkpoint, so the run starts at step 0; what an earlier one left there is kept in %s",
            folder.path,
            aside,
        )


def _write_model(folder: RunFolder, encoder: EncoderConfig, tokenizer: Any) -> None:
    make_folder(folder.model)
    with writable(folder.model) as local:
        save_tokenizer(tokenizer, local)
    write_whole(folder.model / "config.json", _json(encoder.to_hf()))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer's files. Raises OSError, naming the folder, if there is no room."""
    with writing(folder, "Make room, or choose another folder."):
        try:
            tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # the tokenizers package raises bare Exception for a full disk
            raise OSError(str(error)) from error


def read_run(path: str | Path) -> tuple[RunFolder, dict[str, Any], EncoderConfig]:
    """A run's folder, its config as plain values, and its architecture.

    Raises:
      ValueError: if the folder holds no run, or its files have changed since the run wrote them.
    """
    folder = RunFolder(as_path(path))
    check_reachable(folder.path)
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no run (no config.yaml); allowed is a folder that train.py wrote. Check --run.")
    config = _read_config(folder)
    found = _identity(config)  # raises if it is not a run's config
    if folder.manifest.is_file():
        load_recorded(folder.path, config, read_manifest(folder.manifest).get("plugin_sha256"))
    try:
        for section in dataclasses.fields(TrainConfig):
            section.default_factory(**config.get(section.name, {}))  # type: ignore[operator]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.config} is not one that a run wrote ({error}). Restore it from a copy.") from error
    _check_files(folder, found)
    return folder, config, read_config(folder.model)


def read_classes(folder: RunFolder) -> list[str] | None:
    """The names of a run's classes in order of their numbers; None for a regression."""
    return read_manifest(folder.manifest)["classes"]


def _check_files(folder: RunFolder, found: dict[str, Any]) -> None:
    written = read_manifest(folder.manifest).get("files_sha256")  # earlier versions wrote none
    if written is not None:
        check_files(folder.path, written, file_digests(folder.path, found))


def read_id(folder: RunFolder) -> str | None:
    """The run's id, which its checkpoints hold too; None if an earlier version wrote it."""
    return read_manifest(folder.manifest).get("run_id")


def read_shape(folder: RunFolder) -> list[int] | None:
    """The numbers of the `packing.Shape` that a run with checkpoints has; None if there is none."""
    if not folder.has_checkpoint or not folder.manifest.is_file():
        return None
    found = read_manifest(folder.manifest).get("packed")
    return None if found is None else [found[field.name] for field in dataclasses.fields(Shape)]


def write_results(folder: RunFolder, results: dict[str, Any]) -> None:
    write_whole(
        folder.results, _json(results), "Make room, and start the same command again: nothing is trained twice."
    )


def _is_left_by_a_start(path: Path) -> bool:
    """Whether a run that was killed before it wrote its config can have left this file."""
    return is_lock(path) or path.name == "config.yaml.tmp"


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values in the form that YAML reads back."""
    return yaml.safe_load(yaml.safe_dump(values))


def _read_config(folder: RunFolder) -> dict[str, Any]:
    try:
        return load_values(folder.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder.config} is not YAML. Choose another --run.name.") from error


def _identity(stored: dict[str, Any]) -> dict[str, Any]:
    try:
        return identity(stored)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the folder's config.yaml is not one that a run wrote. Choose another folder.") from error
