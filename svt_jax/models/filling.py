"""Reads a model folder's tensors and puts them into a module: one way for all families, which reports every discrepancy at once."""

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

from svt_jax.models.checkpoint_names import (
    base_name,
    encoder_names,
    in_parts,
    is_buffer,
    is_head,
    may_be_absent,
    may_be_missing,
    svt_name,
    with_tied,
)
from svt_jax.models.config import EncoderConfig, read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import Tensors, local_folder, read_tensors
from svt_jax.models.heads import Classifier
from svt_jax.models.slot import stored_values
from svt_jax.models.svt_config import Parameters, SVTConfig, has_svt, read_svt
from svt_jax.models.weight_names import Names
from svt_jax.text import listed

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nnx.Module)
Shardings = Callable[[nnx.State], nnx.State]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
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


def open_checkpoint(path_or_id: str | Path, svt: SVTConfig | None, ignore: Sequence[str]) -> Checkpoint:
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
    return Checkpoint(
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


def fill(
    make: Callable[[], Module], checkpoint: Checkpoint, names: Names, seed: int, shardings: Shardings | None = None
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
    _tell_left_out(module, checkpoint, left_out)
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


def _tell_left_out(module: nnx.Module, checkpoint: Checkpoint, left_out: list[str]) -> None:
    if checkpoint.svt_is_chosen and has_svt(checkpoint.folder):
        log.warning(
            "%s: the SVT that was exported with it is not read, for the one that was asked for starts from its own values",
            checkpoint.folder,
        )
    # whoever asks for an encoder asks for no head
    heads = [name for name in left_out if isinstance(module, Encoder) and is_head(checkpoint.config, name)]
    for level, named in ((logging.INFO, heads), (logging.WARNING, [name for name in left_out if name not in heads])):
        if named:
            log.log(level, "%s: left out, as this model has no such part: %s", checkpoint.folder, listed(sorted(named)))


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


def _sort(checkpoint: Checkpoint, names: Names, paths: Collection[str]) -> tuple[Tensors, list[str], list[str]]:
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
