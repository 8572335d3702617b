"""The files of a model: the folder of a path or a hub id, and the tensors in it, as NumPy arrays.

PyTorch is not needed, except for `pytorch_model.bin`, which only its weights-only reader may open: a pickle can run code.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from svt_jax.host import cache_folder
from svt_jax.stores import StorePath, as_path, check_reachable, readable
from svt_jax.text import listed, printable

Tensors = dict[str, np.ndarray]

_SMALL = [
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "modules.json",  # this and the following belong to sentence-transformers
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def local_folder(path_or_id: str | Path) -> Path:
    """Returns a model's local folder: the path itself, or the hub's cache for an id (google-bert/bert-base-uncased).

    Raises:
      ValueError: if it is neither a folder nor a model that the hub (or its cache, when offline) has, or is a run's folder.
    """
    if isinstance(path_or_id, StorePath) or "://" in str(path_or_id):
        return _copy_of(as_path(path_or_id))
    if Path(path_or_id).is_dir():
        _check_no_run(Path(path_or_id))
        return Path(path_or_id)
    if Path(path_or_id).is_file():
        raise ValueError(
            f"the model {str(path_or_id)!r} is a file; allowed are a folder with config.json, model.safetensors and a "
            "tokenizer, or a hub id. Name its folder."
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(patterns: list[str]) -> Path:
        return Path(snapshot_download(str(path_or_id), allow_patterns=patterns))

    try:
        folder = download(_SMALL + _SAFETENSORS)
        has_weights = any(any(folder.glob(pattern)) for pattern in _SAFETENSORS)
        return folder if has_weights else download(_PICKLES)
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, HFValidationError):
            why, what = "no hub id", "Check the path"
        elif constants.HF_HUB_OFFLINE:
            why = f"the hub's cache {constants.HF_HUB_CACHE} does not have it, and HF_HUB_OFFLINE is set"
            what = f"Check the name, or unset HF_HUB_OFFLINE and run: hf download {path_or_id}"
        else:
            why, what = f"the hub does not give it ({type(error).__name__})", "Check the name and the network"
        raise ValueError(
            f"the model {str(path_or_id)!r} is not a folder here, and {why}; "
            f"allowed are a folder with config.json, model.safetensors and a tokenizer, or a hub id. {what}."
        ) from error


def _check_no_run(folder: Path) -> None:
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a run, not a model; allowed is a model folder. Make one of it: svt-jax eval export --run {folder} "
            "--svt keep --output DIR."
        )


def _copy_of(folder: Path) -> Path:
    """A copy of a model folder in an object store: PyTorch's weights only if there are no others."""
    check_reachable(folder)
    _check_no_run(folder)
    names = [name.relative_to(folder).as_posix() for name in folder.rglob("*")]
    if not names:
        raise ValueError(f"the model {folder} does not exist; allowed is a folder with config.json. Check the path.")
    safe = any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _SAFETENSORS)
    patterns = _SMALL + (_SAFETENSORS if safe else _PICKLES)
    return readable(
        folder, cache_folder() / "models", lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    )


def read_json(path: Path) -> Any:
    """Reads a JSON file of a model folder.

    Raises:
      ValueError: if it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # with a byte-order mark or without
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; no model's file is. Download the model again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({printable(str(error))}). Download the model again.") from error


def weight_files(folder: Path) -> list[Path]:
    """Finds the files that hold a model's weights; safetensors before pickles, a sharded index before a single file.

    Raises:
      ValueError: if there are none, or the index is damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{name}.index.json", folder / name
        if index.is_file():
            found = read_json(index)
            try:
                files = sorted(folder / name for name in set(found["weight_map"].values()))
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} has no weight_map of tensor names to files. Download it again.") from error
            outside = [str(file) for file in files if file.parent != folder]
            missing = [file.name for file in files if not file.is_file()]
            if outside or missing:
                raise ValueError(
                    f"{index} names files that are not beside it: {listed(outside or missing)}. Download the model again."
                )
            return files
        if single.is_file():
            return [single]
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise ValueError(
        f"{folder} has no model.safetensors (found: {found}); a model folder holds config.json, model.safetensors and a "
        "tokenizer. Convert other formats with transformers' save_pretrained."
    )


def hash_weights(folder: Path) -> str:
    """SHA-256 of the bytes of a model's weight files."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_tensors(folder: Path) -> Tensors:
    """Reads all tensors of a model folder, by name.

    Raises:
      ValueError: if there are no weights, a file is damaged, or a tensor is in two files.
    """
    tensors: Tensors = {}
    for file in weight_files(folder):
        read: Callable[[Path], Tensors] = _read_pickle if file.suffix == ".bin" else _read_safetensors
        new = read(file)
        if twice := sorted(tensors.keys() & new.keys()):
            raise ValueError(f"{file} gives again {listed(twice)}. Download the model again.")
        tensors |= new
    return tensors


def _read_safetensors(file: Path) -> Tensors:
    try:
        with safe_open(file, "numpy") as reader:
            kinds = {name: reader.get_slice(name).get_dtype() for name in reader.keys()}  # noqa: SIM118 (not a mapping)
            _check_precision(file, {name: kind for name, kind in kinds.items() if kind not in _READABLE})
            return {name: reader.get_tensor(name) for name in kinds}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a readable safetensors file ({printable(str(error))}). Download it again."
        ) from error


_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


def _check_precision(file: Path, unreadable: dict[str, str]) -> None:
    """Refuses tensors that NumPy has no type for; an 8-bit float would also need the scales of its quantization."""
    if unreadable:
        tensors = [f"{name} ({kind})" for name, kind in unreadable.items()]
        raise ValueError(
            f"{file} has tensors of a precision that is not read: {listed(tensors)}; allowed are float32, float16, "
            "bfloat16 and float64. Save the model in one of these."
        )


def _read_pickle(file: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} is a pickle, which could run any code, so only PyTorch's weights-only reader opens it, and PyTorch is "
            "not installed. Install it, or convert the model to model.safetensors with transformers' save_pretrained."
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storage types of old files
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file ends in exceptions of many kinds
        reason = printable(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file} holds more than tensors, or is damaged ({reason}). Use a model.safetensors of the model, or download it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no table of tensors. Use a model.safetensors of the model.")
    whole = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
    read = {torch.float64, torch.float32, torch.float16, torch.bfloat16} | whole
    is_plain = {name: value.dtype in read and value.layout == torch.strided for name, value in state.items()}
    _check_precision(file, {str(n): f"{v.dtype}, {v.layout}" for n, v in state.items() if not is_plain[n]})
    # NumPy has no bfloat16; float32 holds it exactly
    plain = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in state.items()}
    return {str(name): value.detach().numpy() for name, value in plain.items()}
