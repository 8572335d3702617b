"""A tiny BERT checkpoint as a file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from svt_jax.models.weight_names import _BERT

SMALL = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


def checkpoint_tensors(config, seed=0):
    """Random tensors under Hugging Face's names, as a BertModel would save them."""
    rng = np.random.default_rng(seed)
    d, f = config["hidden_size"], config["intermediate_size"]
    rows = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    tensors = {}
    for name in _BERT:
        for n in range(config["num_hidden_layers"]) if "{layer}" in name else [0]:
            if "embeddings." in name and "LayerNorm" not in name:
                shape = (rows[name.split(".")[1].removesuffix("_embeddings")], d)
            elif "intermediate" in name:
                shape = (f, d) if name.endswith("weight") else (f,)
            elif "LayerNorm" in name or name.endswith("bias"):
                shape = (d,)
            else:
                shape = (d, f) if "output.dense" in name and "attention" not in name else (d, d)
            tensors[name.format(layer=n)] = (rng.normal(size=shape) * 0.3).astype(np.float32)
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    save_file(checkpoint_tensors(SMALL), tmp_path / "model.safetensors")
    return tmp_path
