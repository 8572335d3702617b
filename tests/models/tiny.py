"""Tiny random models of every family, without PyTorch and without compiling anything."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.families import FAMILIES
from svt_jax.models.heads import Classifier
from svt_jax.models.svt_config import PRE_NORM_PLACEMENTS
from svt_jax.spectral.base import TOKEN_SITES

SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "embedding_size": 8,
}
OWN = {  # sizes that a family needs to fit into these
    "modernbert": {"pad_token_id": 0, "local_attention": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "esm": {"pad_token_id": 1, "mask_token_id": 4, "positions": "rotary"},
}
PADDING = {"roberta": 1, "xlm-roberta": 1, "camembert": 1, "gte": 1, "esm": 1, "mpnet": 1}
PRE_NORM = [family for family in FAMILIES if FAMILIES[family].fixed.get("norm") == "pre"]
POST_NORM = [family for family in FAMILIES if family not in PRE_NORM]
FAST = ("bert", "roberta", "distilbert", "albert", "modernbert", "nomic_bert")
"""Families of the fast tests: the four oldest, one with norms in front and sliding windows, and a rotary one with norms behind."""
IDS = np.random.default_rng(1).integers(3, 40, (2, 5)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)


_ALIKE = ("xlm-roberta", "camembert", "electra", "gte")
DIFFERENT = [family for family in FAMILIES if family not in _ALIKE]
"""Without those that are another family with other defaults, biases or a projection: RoBERTa, RoBERTa, BERT and Nomic. Tests of
weights, configs and equality with transformers take all."""


def families(among=DIFFERENT, *, fast=FAST):
    """For `parametrize`: the families of which all but the fast ones are slow tests."""
    return [pytest.param(family, marks=[] if family in fast else pytest.mark.slow) for family in among]


def fields(family, **changes):
    """The fields of a config.json; arguments use our names."""
    names = FAMILIES[family].fields
    own = dict(OWN.get(family, {}))
    if "num_hidden_layers" in changes and "layer_types" in own:
        own["layer_types"] = [own["layer_types"][n % 2] for n in range(changes["num_hidden_layers"])]
    values = {**SIZES, **own, **changes}
    unknown = changes.keys() - names.keys()
    assert not unknown, f"{family} has no {unknown}"
    out = {"model_type": family}
    for ours, value in values.items():
        if ours in names:
            *tables, last = names[ours][0].split(".")
            inner = out
            for table in tables:
                inner = inner.setdefault(table, {})
            inner[last] = value
    return out


def fitting(family, svt):
    """The same remedy at a place that the family has."""
    if svt is None or family not in PRE_NORM or svt.site not in TOKEN_SITES or svt.placement in PRE_NORM_PLACEMENTS:
        return svt
    return dataclasses.replace(svt, placement="output")


def randomize(module, seed=0, scale=0.3):
    """Draws all weights from a normal distribution, also biases and layer norms; SVT parameters stay."""
    rng = np.random.default_rng(seed)
    for path, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Param) and "svt" not in path:
            shift = 1.0 if path[-1] == "scale" else 0.0
            values = shift + scale * rng.normal(size=variable.get_value().shape)
            variable.set_value(jnp.asarray(values, jnp.float32))
    return module


def encoder(family, svt=None, *, seed=0, dtype=jnp.float32, **changes):
    config = EncoderConfig.from_hf(fields(family, **changes))
    return randomize(Encoder(config, fitting(family, svt), dtype=dtype, rngs=nnx.Rngs(0)), seed)


def classifier(family, svt=None, *, num_labels=3, seed=0, dtype=jnp.float32, **changes):
    config = EncoderConfig.from_hf(fields(family, **changes))
    body = Encoder(config, fitting(family, svt), dtype=dtype, rngs=nnx.Rngs(0))
    return randomize(Classifier(body, num_labels, rngs=nnx.Rngs(0)), seed)


def rewrite(folder, change):
    """Changes the tensors of a model folder: `change` gets them by name."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
