"""Tiny random models of every family, without PyTorch and without compiling anything."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.families import FAMILIES
from svt_jax.models.heads import Classifier

SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "embedding_size": 8,
}
IDS = np.random.default_rng(1).integers(3, 40, (2, 5)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)


def fields(family, **changes):
    """The fields of a config.json; arguments use our names."""
    names = FAMILIES[family].fields
    values = {**SIZES, **changes}
    unknown = changes.keys() - names.keys()
    assert not unknown, f"{family} has no {unknown}"
    return {"model_type": family, **{names[ours][0]: value for ours, value in values.items() if ours in names}}


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
    return randomize(Encoder(config, svt, dtype=dtype, rngs=nnx.Rngs(0)), seed)


def classifier(family, svt=None, *, num_labels=3, seed=0, dtype=jnp.float32, **changes):
    config = EncoderConfig.from_hf(fields(family, **changes))
    body = Encoder(config, svt, dtype=dtype, rngs=nnx.Rngs(0))
    return randomize(Classifier(body, num_labels, rngs=nnx.Rngs(0)), seed)
