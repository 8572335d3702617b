"""Loads Hugging Face weights: one loader for all families, which reports every discrepancy at once."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.models.config import EncoderConfig, read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import Tensors, local_folder, read_json, read_tensors
from svt_jax.models.heads import Classifier
from svt_jax.models.slot import stored_values
from svt_jax.models.svt_config import Parameters, SVTConfig, has_svt, read_svt
from svt_jax.models.weight_names import (
    Names,
    base_name,
    encoder_names,
    head_names,
    in_parts,
    is_buffer,
    is_head,
    may_be_absent,
    may_be_missing,
    svt_name,
    with_tied,
)
from svt_jax.text import listed, printable

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nnx.Module)
Shardings = Callable[[nnx.State], nnx.State]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load_encoder(
    path_or_id: str | Path,
    *,
    svt: SVTConfig | None = None,
    dtype: str = "float32",
    ignore: Sequence[str] = (),
    remat: bool = False,
    scan_layers: bool = False,
) -> Encoder:
    """Loads a pretrained encoder of one of the families of `models.families`.

    Args:
      path_or_id: a folder with config.json and model.safetensors (or a sharded index), or a hub id. A `pytorch_model.bin`
        is read where PyTorch is installed.
      svt: the transformation to put into it; parameters start from `svt.alpha` and `svt.params`. None: the one that
        `export_hf` kept in the folder with its parameters, if there is one.
      dtype: the computation's dtype, "float32" or "bfloat16"; parameters are float32.
      ignore: name patterns, as in ("my_head.*",), of tensors to leave out where this architecture has no place for
        them. Any other such tensor is an error, except the heads that transformers knows.
      remat, scan_layers: as for `models.encoder.Encoder`.
    Returns:
      The module, called as encoder(input_ids, attention_mask, token_type_ids).
    Raises:
      ValueError: if the folder has no weights, or tensors are missing, unknown, misshapen or not floating point
        (the first few of each kind are listed), or the architecture is not supported.
    """
    checkpoint = _open(path_or_id, svt, ignore)
    return _fill(
        lambda: checkpoint.new_encoder(dtype, nnx.Rngs(0), remat, scan_layers),
        checkpoint,
        encoder_names(checkpoint.config),
        0,
    )


def load_classifier(
    path_or_id: str | Path,
    *,
    num_labels: int | None = None,
    svt: SVTConfig | None = None,
    dtype: str = "float32",
    seed: int = 0,
    shardings: Shardings | None = None,
    ignore: Sequence[str] = (),
    remat: bool = False,
    scan_layers: bool = False,
) -> Classifier:
    """Loads a pretrained encoder with a classification head.

    The head is loaded if the checkpoint has one of this size. Otherwise it is drawn from `seed`, with a warning.
    Arguments and errors are as in `load_encoder`. The module's `class_names` are those of config.json (id2label), where
    the head is loaded.

    Args:
      num_labels: number of classes, 1 for regression; None takes the checkpoint's head, as of a folder that `export_hf`
        wrote.
      shardings: maps the module's abstract state to a sharding for each variable, and each device receives only its
        part. Without it all weights come to the default device.
    Raises:
      ValueError: also if `num_labels` is None and the checkpoint has no head, or one for several classes at a time.
    """
    checkpoint = _open(path_or_id, svt, ignore)
    config = checkpoint.config
    names = {theirs: (f"encoder/{ours}", change) for theirs, (ours, change) in encoder_names(config).items()}
    size = _head_size(checkpoint) if num_labels is None else num_labels
    fits = _head_fits(config, checkpoint.tensors, size)
    if fits:
        names |= head_names(config)
    elif config.head == "norm":  # all but the classifier is the head of the pretrained language model
        below = {t: entry for t, entry in head_names(config).items() if not entry[0].startswith("classifier/")}
        names |= below if below.keys() <= checkpoint.tensors.keys() else {}

    def make() -> Classifier:
        rngs = nnx.Rngs(seed)
        return Classifier(checkpoint.new_encoder(dtype, rngs, remat, scan_layers), size, rngs=rngs)

    classifier = _fill(make, checkpoint, names, seed, shardings)
    if not fits:  # warned of once all is well: an error must be one line
        found = head_names(config).keys() & checkpoint.tensors.keys()
        reason = "has a head of another size" if found else "has no classification head"
        log.warning(
            "%s %s: the head for %d labels starts from random values (seed %d)",
            checkpoint.folder,
            reason,
            size,
            seed,
        )
    elif size > 1:
        classifier.class_names = _class_names(checkpoint.folder, size)
    return classifier


def _class_names(folder: Path, number: int) -> tuple[str, ...] | None:
    """The names of so many classes in config.json, in the order of the logits; None unless each has its own."""
    named = read_json(folder / "config.json").get("id2label")
    names = [str(named.get(str(n), "")) for n in range(number)] if isinstance(named, dict) else []
    return tuple(names) if len(named or ()) == len(set(names) - {""}) == number else None


def _head_size(checkpoint: _Checkpoint) -> int:
    """The number of labels of the checkpoint's head."""
    bias = next(theirs for theirs, (ours, _) in head_names(checkpoint.config).items() if ours == "classifier/bias")
    found = checkpoint.tensors.get(bias)
    size = 0 if found is None or found.ndim != 1 else len(found)
    if not size or not _head_fits(checkpoint.config, checkpoint.tensors, size):
        raise ValueError(
            f"{checkpoint.folder} has no classification head ({', '.join(head_names(checkpoint.config))}); allowed without "
            "num_labels is the folder of a trained classifier, as eval.py export writes it. Name another folder, or give "
            "num_labels for a new head."
        )
    settings = read_json(checkpoint.folder / "config.json")
    if settings.get("id2label") and _class_names(checkpoint.folder, size) is None:
        raise ValueError(
            f"config.json of {checkpoint.folder} has id2label {printable(str(settings['id2label']))} for a head of {size} "
            f"classes; allowed is a different name for each number from 0. Correct it, or give num_labels={size}."
        )
    if settings.get("problem_type") == "multi_label_classification":
        raise ValueError(
            f"{checkpoint.folder} has a head for several classes at a time (problem_type multi_label_classification); allowed "
            f"is one class of each text. Give num_labels={size} to use its logits."
        )
    return size


def has_head(folder: Path, num_labels: int) -> bool:
    """Whether a checkpoint has a classification head of this size."""
    checkpoint = _open(folder, None, ())
    return _head_fits(checkpoint.config, checkpoint.tensors, num_labels)


def _head_fits(config: EncoderConfig, tensors: Tensors, num_labels: int) -> bool:
    size = config.hidden_size
    shapes = {"dense": (size, size), "norm": (size,), "classifier": (num_labels, size)}
    for theirs, (ours, _) in head_names(config).items():
        module, parameter = ours.split("/")
        shape = shapes[module] if parameter == "kernel" else shapes[module][:1]
        tensor = tensors.get(theirs)
        if tensor is None or tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            return False
    return True


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A model folder as it was read: tensors by their name in a base model, and the SVT that the module will have."""

    folder: Path
    config: EncoderConfig
    tensors: Tensors
    full_names: dict[str, str]  # the tensors' names as they stand in the file
    svt: SVTConfig | None
    svt_is_chosen: bool  # by the caller
    svt_is_exported: bool  # and read from the folder, with its parameters
    parameters: Parameters | None  # None: it has none, or they are among the tensors, as earlier versions kept them
    ignore: Sequence[str]

    def new_encoder(self, dtype: str, rngs: nnx.Rngs, remat: bool, scan_layers: bool) -> Encoder:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}. Use float32 when in doubt.")
        return Encoder(self.config, self.svt, dtype=DTYPES[dtype], rngs=rngs, remat=remat, scan_layers=scan_layers)


def _open(path_or_id: str | Path, svt: SVTConfig | None, ignore: Sequence[str]) -> _Checkpoint:
    folder = local_folder(path_or_id)
    config = read_config(folder)
    exported, parameters = read_svt(folder) if svt is None else (None, None)
    tensors: Tensors = {}
    full_names: dict[str, str] = {}
    twice = []
    for full_name, tensor in read_tensors(folder).items():
        name = base_name(config, full_name)
        if name in tensors:
            twice.append(f"{full_name} is given twice, as {name} of the base model")
        tensors[name], full_names[name] = tensor, full_name
    if twice:
        raise ValueError(f"weights in {folder} do not fit: {listed(twice, between='; ')}. Download the model again.")
    return _Checkpoint(
        folder,
        config,
        in_parts(encoder_names(config), with_tied(config, tensors)),
        full_names,
        svt=exported if svt is None else svt,
        svt_is_chosen=svt is not None,
        svt_is_exported=exported is not None,
        parameters=parameters,
        ignore=[ignore] if isinstance(ignore, str) else list(ignore),
    )


def _fill(
    make: Callable[[], Module], checkpoint: _Checkpoint, names: Names, seed: int, shardings: Shardings | None = None
) -> Module:
    """Builds the module with the tensors in place; a pooler or a head that the checkpoint lacks is drawn at random."""
    module = nnx.eval_shape(make)
    state = nnx.state(module)
    variables = {"/".join(map(str, key)): variable for key, variable in nnx.to_flat_state(state)}
    if checkpoint.svt_is_exported and checkpoint.parameters is None:
        names = names | {
            svt_name(path.removeprefix("encoder/")): (path, np.asarray) for path in variables if "/svt/" in path
        }
    tensors, left_out, unknown = _sort(checkpoint, names, variables.keys())
    parameters, strange = _svt_parameters(module, checkpoint.parameters)
    tensors |= parameters
    missing, misshapen, whole = [], [], []
    theirs_of = {ours: theirs for theirs, (ours, _) in names.items()} | {
        path: f"svt_jax's {path}" for path in parameters
    }
    has_pooler = any("pooler/" in path for path in tensors)  # half a pooler is a fault, none is not
    for path, variable in variables.items():
        shape = variable.get_value().shape
        if path not in theirs_of:  # a new head, or an SVT that starts here
            continue
        if path not in tensors:
            if (has_pooler or "pooler/" not in path) and not may_be_missing(path):
                missing.append(f"{theirs_of[path]} is missing ({path} {list(shape)})")
        elif tensors[path].shape != shape:
            misshapen.append(f"{theirs_of[path]} gives {list(tensors[path].shape)} for {path} {list(shape)}")
        elif not jnp.issubdtype(tensors[path].dtype, jnp.floating):
            whole.append(f"{theirs_of[path]} is {tensors[path].dtype}, not floating point")
    if any(problems := (missing, misshapen, whole, unknown, strange)):
        raise ValueError(
            f"weights in {checkpoint.folder} do not fit: "
            f"{'; '.join(listed(kind, most=4, between='; ') for kind in problems if kind)}. "
            "Check that config.json and the weights belong together"
            + ("; tensors of your own can be left out by ignore=." if unknown else ".")
        )
    if checkpoint.svt_is_chosen and has_svt(checkpoint.folder):
        log.warning(
            "%s: the SVT that was exported with it is not read, for the one that was asked for starts from its own values",
            checkpoint.folder,
        )
    if left_out:
        log.warning("%s: left out, as this model has no such part: %s", checkpoint.folder, listed(sorted(left_out)))
    if any("pooler/" in path for path in variables) and not has_pooler:
        log.warning("%s has no pooler: it starts from random values (seed %d)", checkpoint.folder, seed)

    def draw() -> dict[str, jax.Array]:  # under jit, so that nothing is computed for weights that are loaded
        values = [variable.get_value() for _, variable in nnx.to_flat_state(nnx.state(make()))]
        return {path: value for path, value in zip(variables, values, strict=True) if path not in tensors}

    place: dict[str, jax.sharding.Sharding | None] = dict.fromkeys(variables)  # None: the default device, uncommitted
    if shardings is not None:
        by_path = nnx.to_flat_state(shardings(state))
        place = {"/".join(map(str, path)): variable.get_value() for path, variable in by_path}
    random = {path: place[path] for path in variables if path not in tensors}
    drawn = jax.jit(draw, out_shardings=random)() if random else {}  # tracing takes as long as building the module
    for path, variable in variables.items():
        variable.set_value(_put(tensors[path], place[path]) if path in tensors else drawn[path])
    nnx.update(module, state)
    return module


def _put(tensor: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.array(tensor, jnp.float32)  # copies: on CPU device_put may alias NumPy memory
    return jax.make_array_from_callback(tensor.shape, sharding, lambda index: np.array(tensor[index], np.float32))


def _svt_parameters(module: nnx.Module, parameters: Parameters | None) -> tuple[Tensors, list[str]]:
    """Returns an SVT's exported parameters by our path, in their stored form, and what is wrong with them."""
    if parameters is None:
        return {}, []
    ahead, encoder = ("encoder/", module.encoder) if isinstance(module, Classifier) else ("", module)
    assert isinstance(encoder, Encoder)
    layers = {str(n): layer.svt for n, layer in enumerate(encoder.layers) if layer.svt is not None}
    tensors: Tensors = {}
    problems = []
    if layers.keys() != parameters.keys():
        problems.append(f"svt_jax has parameters of the layers {listed(list(parameters))}, not {', '.join(layers)}")
    for number in layers.keys() & parameters.keys():
        try:
            stored = stored_values(layers[number], parameters[number])
        except ValueError as error:
            problems.append(f"svt_jax, layer {number}: {error}")
        else:
            tensors |= {f"{ahead}layers/{number}/svt/parameters/{name}": array for name, array in stored.items()}
    return tensors, problems


def _sort(checkpoint: _Checkpoint, names: Names, paths: Collection[str]) -> tuple[Tensors, list[str], list[str]]:
    """Returns the tensors by our path, the names of those left out, and what does not belong to this model."""
    tensors: Tensors = {}
    left_out, problems = [], []
    for name, tensor in checkpoint.tensors.items():
        if name in names and names[name][0] in paths:
            ours, change = names[name]
            tensors[ours] = change(tensor)
        elif (name in names and may_be_absent(name)) or is_head(checkpoint.config, name):
            left_out.append(name)
        elif name.startswith("svt.") and checkpoint.svt_is_chosen:
            continue  # one warning tells of the exported SVT as a whole
        elif not is_buffer(name):
            full_name = checkpoint.full_names.get(name, name)
            if any(fnmatch.fnmatchcase(each, pattern) for each in {name, full_name} for pattern in checkpoint.ignore):
                left_out.append(full_name)
            else:
                problems.append(f"{full_name} {list(tensor.shape)} is not a tensor of this architecture")
    return tensors, left_out, problems
