"""A tiny random model with a tokenizer, and a folder of STS files in its vocabulary."""

import json

import numpy as np
import pytest
from flax import nnx

from svt_jax.data.demo import load_demo, vocabulary
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.export import export_hf

FIELDS = {
    "model_type": "bert",
    "vocab_size": len(vocabulary()),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
}


def write_model(folder, seed=0):
    export_hf(Encoder(EncoderConfig.from_hf(FIELDS), rngs=nnx.Rngs(seed)), folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model():
    """A function that writes such a model into a folder, from a seed."""
    return write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a BERT with 2 layers of 8 and 32 positions."""
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def sentences():
    """60 distinct sentences of several lengths."""
    demo = load_demo("test")
    return list(dict.fromkeys([s for pair in zip(demo.first, demo.second, strict=True) for s in pair]))[:60]


@pytest.fixture
def sts_folder(tmp_path, sentences):
    """Two tasks of three files, each with 12 pairs of the first 40 sentences."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sts"
    folder.mkdir()
    for name in ("x", "y", "z"):
        lines = [
            f"{n % 6}.0\t{sentences[a]}\t{sentences[b]}\n" for n, (a, b) in enumerate(rng.integers(0, 40, (12, 2)))
        ]
        (folder / f"{name}.tsv").write_text("".join(lines))
    entry = lambda name: {"file": f"{name}.tsv", "pairs": 12}
    index = {"t1": {"pairs": 24, "files": [entry("x"), entry("y")]}, "t2": {"pairs": 12, "files": [entry("z")]}}
    (folder / "tasks.json").write_text(json.dumps(index))
    return folder
