"""Hugging Face weights in: a name table for each family, one loader, every discrepancy reported at once.

PyTorch is not needed: tensors are read from safetensors files as NumPy arrays.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from svt_jax.models.config import EncoderConfig, SVTConfig, read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.heads import Classifier
from svt_jax.models.svt_layer import SVTParam

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nnx.Module)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Transform = Callable[[np.ndarray], np.ndarray]


def _same(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _transposed(tensor: np.ndarray) -> np.ndarray:  # PyTorch's Linear keeps [out, in], ours [in, out]
    return np.ascontiguousarray(tensor.T)


def _dense(theirs: str, ours: str) -> dict[str, tuple[str, Transform]]:
    return {f"{theirs}.weight": (f"{ours}/kernel", _transposed), f"{theirs}.bias": (f"{ours}/bias", _same)}


def _norm(theirs: str, ours: str) -> dict[str, tuple[str, Transform]]:
    return {f"{theirs}.weight": (f"{ours}/scale", _same), f"{theirs}.bias": (f"{ours}/bias", _same)}


def _embedding(theirs: str, ours: str) -> dict[str, tuple[str, Transform]]:
    return {f"{theirs}.weight": (f"{ours}/embedding", _same)}


# Hugging Face name -> our path and what to do with the tensor; {} stands for the layer number.
_BERT: dict[str, tuple[str, Transform]] = {
    **_embedding("embeddings.word_embeddings", "embeddings/word"),
    **_embedding("embeddings.position_embeddings", "embeddings/position"),
    **_embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
    **_norm("embeddings.LayerNorm", "embeddings/norm"),
    **_dense("encoder.layer.{}.attention.self.query", "layers/{}/attention/query"),
    **_dense("encoder.layer.{}.attention.self.key", "layers/{}/attention/key"),
    **_dense("encoder.layer.{}.attention.self.value", "layers/{}/attention/value"),
    **_dense("encoder.layer.{}.attention.output.dense", "layers/{}/attention/out"),
    **_norm("encoder.layer.{}.attention.output.LayerNorm", "layers/{}/attention_norm"),
    **_dense("encoder.layer.{}.intermediate.dense", "layers/{}/up"),
    **_dense("encoder.layer.{}.output.dense", "layers/{}/down"),
    **_norm("encoder.layer.{}.output.LayerNorm", "layers/{}/output_norm"),
    **_dense("pooler.dense", "pooler/dense"),
}
_NAMES = {"bert": _BERT}
_PREFIX = {"bert": "bert."}
_HEAD = {"bert": _dense("classifier", "classifier")}

# Tensors of a checkpoint that hold no weight of the encoder: buffers, and heads for other tasks.
_IGNORED = re.compile(r"^(embeddings\.position_ids|embeddings\.token_type_ids|cls\..*|qa_outputs\..*|classifier\..*)$")
# Parts that many checkpoints lack; they start random then, as in transformers, and that is said.
_OPTIONAL = re.compile(r"^pooler/")


def load_encoder(path_or_id: str | Path, *, svt: SVTConfig | None = None, dtype: str = "float32") -> Encoder:
    """Loads a pretrained encoder.

    Args:
      path_or_id: a folder with config.json and model.safetensors (or a sharded index), or a hub id.
      svt: the transformation to put into it; parameters start from `svt.alpha` and `svt.params`.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32.
    Returns:
      The module, called as encoder(input_ids, attention_mask, token_type_ids).
    Raises:
      ValueError: if the folder has no weights, or tensors are missing, unknown, misshapen or not floating point
        (all of them listed), or the architecture is not supported.
    """
    folder = local_folder(path_or_id)
    tensors, _ = _encoder_tensors(folder, svt, dtype)
    return _fill(lambda: _new_encoder(folder, svt, dtype), tensors, seed=0, source=folder)


def load_classifier(
    path_or_id: str | Path, *, num_labels: int, svt: SVTConfig | None = None, dtype: str = "float32", seed: int = 0
) -> Classifier:
    """Loads a pretrained encoder with a classification head.

    The head is loaded when the checkpoint has one of the same size, and drawn from `seed` otherwise (and a log message
    says which). Arguments and errors as in `load_encoder`; num_labels is 1 for regression.
    """
    folder = local_folder(path_or_id)
    tensors, others = _encoder_tensors(folder, svt, dtype)
    tensors = {f"encoder/{path}": tensor for path, tensor in tensors.items()}
    config = read_config(folder)
    head = _head_tensors(config.model_type, others)
    fits = _head_fits(head, config, num_labels)
    if fits:
        tensors |= head
    else:
        reason = "has no classification head" if not head else "has a head of another size"
        log.warning(
            "%s %s: the head for %d labels starts from random values (seed %d)", folder, reason, num_labels, seed
        )

    def make() -> Classifier:
        rngs = nnx.Rngs(seed)
        return Classifier(_new_encoder(folder, svt, dtype, rngs), num_labels, rngs=rngs)

    return _fill(
        make, tensors, seed=seed, source=folder, optional=r"^encoder/pooler/" + ("" if fits else "|^classifier/")
    )


def has_head(folder: Path, num_labels: int) -> bool:
    """Whether a checkpoint has a classification head of this size."""
    config = read_config(folder)
    return _head_fits(_head_tensors(config.model_type, _read_tensors(folder)), config, num_labels)


def _head_tensors(family: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {ours: change(tensors[theirs]) for theirs, (ours, change) in _HEAD[family].items() if theirs in tensors}


def _head_fits(head: Mapping[str, np.ndarray], config: EncoderConfig, num_labels: int) -> bool:
    shapes = {"classifier/kernel": (config.hidden_size, num_labels), "classifier/bias": (num_labels,)}
    return {path: tensor.shape for path, tensor in head.items() if np.issubdtype(tensor.dtype, np.floating)} == shapes


def local_folder(path_or_id: str | Path) -> Path:
    """The local folder of a model: the path itself, or the hub's download cache for an id such as google-bert/bert-base-uncased.

    Raises:
      ValueError: if it is neither a folder nor a model that the hub (or its cache, when offline) has.
    """
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"model.path {str(path_or_id)!r} is not a folder here, and the hub does not give it ({type(error).__name__}); "
            "allowed are a folder with config.json, model.safetensors and a tokenizer, or a hub id. Check the path or the network."
        ) from error


def _new_encoder(folder: Path, svt: SVTConfig | None, dtype: str, rngs: nnx.Rngs | None = None) -> Encoder:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}. Use float32 when in doubt.")
    return Encoder(read_config(folder), svt, dtype=DTYPES[dtype], rngs=rngs or nnx.Rngs(0))


def _encoder_tensors(
    folder: Path, svt: SVTConfig | None, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The encoder's tensors by our path, and the others of the checkpoint by their name."""
    config = read_config(folder)
    raw = _read_tensors(folder)
    prefix = _PREFIX[config.model_type]
    names = _NAMES[config.model_type]
    table = {
        theirs.format(n): (ours.format(n), change)
        for theirs, (ours, change) in names.items()
        for n in (range(config.num_hidden_layers) if "{}" in theirs else [0])
    }
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}
    problems = []
    for full_name, tensor in raw.items():
        name = full_name.removeprefix(prefix)
        # TensorFlow-era checkpoints call layer norm's parameters gamma and beta.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name in table:
            ours, change = table[name]
            if ours in tensors:
                problems.append(f"{full_name} is given twice (with and without {prefix!r})")
            tensors[ours] = change(tensor)
        elif _IGNORED.match(name):
            others[name] = tensor
        else:
            problems.append(f"{full_name} {list(tensor.shape)} is not a tensor of this architecture")
    expected = _shapes(nnx.eval_shape(lambda: _new_encoder(folder, svt, dtype)))
    theirs_of = {ours: theirs for theirs, (ours, _) in table.items()}
    optional_whole = not any(_OPTIONAL.match(path) for path in tensors)  # half a pooler is a fault, none is not
    for path, shape in expected.items():
        if path not in tensors:
            if not (_OPTIONAL.match(path) and optional_whole):
                problems.append(f"{theirs_of[path]} is missing ({path} {list(shape)})")
        elif tensors[path].shape != shape:
            problems.append(f"{theirs_of[path]} gives {list(tensors[path].shape)} for {path} {list(shape)}")
        elif not jnp.issubdtype(tensors[path].dtype, jnp.floating):
            problems.append(f"{theirs_of[path]} is {tensors[path].dtype}, not floating point")
    if problems:
        raise ValueError(
            f"weights in {folder} do not fit: {'; '.join(problems)}. Check that config.json and the weights belong together."
        )
    return tensors, others


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} has no weight_map of tensor names to files. Download it again.") from error
    elif single.is_file():
        files = [single]
    else:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ValueError(
            f"{folder} has no model.safetensors (found: {found}); a model folder holds config.json, model.safetensors and a "
            "tokenizer. Convert other formats with transformers' save_pretrained."
        )
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            with safe_open(file, "numpy") as reader:
                tensors |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a readable safetensors file ({error}). Download it again.") from error
    return tensors


def _shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shape by path of each weight that a checkpoint has; the SVT's own parameters are not among them."""
    state = nnx.to_flat_state(nnx.state(module, nnx.All(nnx.Param, nnx.Not(SVTParam))))
    return {"/".join(map(str, path)): variable.get_value().shape for path, variable in state}


def _fill(
    make: Callable[[], Module],
    tensors: Mapping[str, np.ndarray],
    *,
    seed: int,
    source: Path,
    optional: str = r"^pooler/",
) -> Module:
    """Builds the module with the tensors in place; what `optional` allows to be absent is drawn at random."""
    module = nnx.eval_shape(make)
    absent = [path for path in _shapes(module) if path not in tensors]
    unexpected = [path for path in absent if not re.match(optional, path)]
    assert not unexpected, unexpected
    state = nnx.state(module)
    paths = ["/".join(map(str, key)) for key, _ in nnx.to_flat_state(state)]

    def draw() -> dict[str, jnp.ndarray]:  # under jit, so that nothing is computed for weights that are loaded
        values = [variable.get_value() for _, variable in nnx.to_flat_state(nnx.state(make()))]
        return {path: value for path, value in zip(paths, values, strict=True) if path not in tensors}

    drawn = jax.jit(draw)()
    if any("pooler" in path for path in absent):
        log.warning("%s has no pooler: it starts from random values (seed %d)", source, seed)
    for path, (_, variable) in zip(paths, nnx.to_flat_state(state), strict=True):
        # jnp.array copies: on CPU device_put may alias NumPy memory
        variable.set_value(jnp.array(tensors[path], jnp.float32) if path in tensors else drawn[path])
    nnx.update(module, state)
    return module
