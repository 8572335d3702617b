"""Weights from Hugging Face: parity with PyTorch, and every discrepancy reported at once."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.files import local_folder
from svt_jax.models.names import _BERT

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


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")


IDS = np.random.default_rng(1).integers(0, 40, (2, 5)).astype(np.int32)


def test_a_base_models_names_and_a_heads_prefix_give_the_same_encoder(checkpoint):
    plain = svt_jax.load_encoder(checkpoint)(IDS)

    def prefixed(tensors):
        values = {f"bert.{name}": tensors.pop(name) for name in list(tensors)}
        values |= {
            "cls.predictions.bias": np.zeros(40, np.float32),
            "bert.embeddings.position_ids": np.arange(16)[None],
        }
        tensors.update(values)

    rewrite(checkpoint, prefixed)
    again = svt_jax.load_encoder(checkpoint)(IDS)
    assert np.array_equal(plain.last_hidden_state, again.last_hidden_state)
    assert np.array_equal(plain.pooled, again.pooled)


def test_layer_norms_of_tensorflow_days_are_read(checkpoint):
    plain = svt_jax.load_encoder(checkpoint)(IDS)

    def old_names(tensors):
        for name in [n for n in tensors if "LayerNorm" in n]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    rewrite(checkpoint, old_names)
    assert np.array_equal(plain.last_hidden_state, svt_jax.load_encoder(checkpoint)(IDS).last_hidden_state)


def test_a_sharded_checkpoint_is_read_through_its_index(checkpoint):
    plain = svt_jax.load_encoder(checkpoint)(IDS)
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({n: tensors[n] for n in members}, checkpoint / file)
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {n: file for file, members in parts.items() for n in members}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert np.array_equal(plain.last_hidden_state, svt_jax.load_encoder(checkpoint)(IDS).last_hidden_state)


def test_every_discrepancy_is_reported_at_once_with_names_and_shapes(checkpoint):
    def damage(tensors):
        del tensors["encoder.layer.1.attention.self.key.bias"]
        tensors["embeddings.word_embeddings.weight"] = np.zeros((39, 12), np.float32)
        tensors["encoder.layer.2.output.dense.bias"] = np.zeros(12, np.float32)
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(12, np.int32)

    rewrite(checkpoint, damage)
    with pytest.raises(ValueError) as raised:
        svt_jax.load_encoder(checkpoint)
    message = str(raised.value)
    assert "encoder.layer.1.attention.self.key.bias is missing (layers/1/attention/key/bias [12])" in message
    assert "embeddings.word_embeddings.weight gives [39, 12] for embeddings/word/embedding [40, 12]" in message
    assert "encoder.layer.2.output.dense.bias [12] is not a tensor of this architecture" in message
    assert "encoder.layer.0.output.dense.bias is int32, not floating point" in message


def test_a_missing_pooler_is_drawn_and_said(checkpoint, caplog):
    rewrite(checkpoint, lambda t: [t.pop(n) for n in ("pooler.dense.weight", "pooler.dense.bias")])
    encoder = svt_jax.load_encoder(checkpoint)
    assert "has no pooler: it starts from random values" in caplog.text
    assert float(np.abs(encoder.pooler.dense.kernel[...]).max()) > 0


def test_the_head_is_loaded_when_it_fits_and_drawn_from_the_seed_otherwise(checkpoint, caplog):
    kernel = np.arange(36, dtype=np.float32).reshape(3, 12)
    rewrite(checkpoint, lambda t: t.update({"classifier.weight": kernel, "classifier.bias": np.ones(3, np.float32)}))
    loaded = svt_jax.load_classifier(checkpoint, num_labels=3)
    np.testing.assert_array_equal(loaded.classifier.kernel[...], kernel.T)
    assert caplog.text == ""
    drawn = [svt_jax.load_classifier(checkpoint, num_labels=2, seed=s).classifier.kernel[...] for s in (0, 0, 1)]
    assert "has a head of another size" in caplog.text
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "head",
    [{"classifier.weight": (2, 7), "classifier.bias": (2,)}, {"classifier.weight": (2, 12)}],
    ids=["width", "no bias"],
)
def test_a_head_that_is_not_whole_is_not_loaded(checkpoint, caplog, head):
    rewrite(checkpoint, lambda t: t.update({name: np.ones(shape, np.float32) for name, shape in head.items()}))
    classifier = svt_jax.load_classifier(checkpoint, num_labels=2)
    assert "starts from random values" in caplog.text
    assert classifier(IDS).shape == (2, 2)


def test_half_a_pooler_is_an_error(checkpoint):
    rewrite(checkpoint, lambda t: t.pop("pooler.dense.bias"))
    with pytest.raises(ValueError, match="pooler.dense.bias is missing"):
        svt_jax.load_encoder(checkpoint)


def test_a_model_with_svt_has_the_same_weights_and_its_own_alpha(checkpoint):
    config = svt_jax.SVTConfig("soft_decay", layers=[0, 1], alpha=[-0.2, -0.7])
    encoder = svt_jax.load_encoder(checkpoint, svt=config)
    plain = svt_jax.load_encoder(checkpoint)
    np.testing.assert_allclose([float(a) for a in encoder.alphas.values()], [-0.2, -0.7], rtol=1e-6)
    np.testing.assert_array_equal(encoder.layers[1].down.kernel[...], plain.layers[1].down.kernel[...])


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors .found: config.json."),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs"),
            "not a readable safetensors file",
        ),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "holds no table of fields"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    ],
)
def test_a_broken_folder_is_an_error_that_says_what_to_do(checkpoint, prepare, words):
    prepare(checkpoint)
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint)


def test_a_path_that_is_nowhere_is_an_error():
    with pytest.raises(ValueError, match="is not a folder here, and no hub id; allowed are .* Check the path"):
        local_folder("no/such/model/folder")


def torch_outputs(model, ids, mask, types):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids), torch.tensor(mask), torch.tensor(types), output_hidden_states=True)


def assert_parity(ours, theirs):
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.pooled, theirs.pooler_output.numpy(), atol=1e-4, rtol=0)


VARIANTS = [
    {},
    {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    {"hidden_act": "relu", "num_hidden_layers": 1, "type_vocab_size": 1},
    {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "layer_norm_eps": 1e-3},
    {"hidden_act": "silu", "num_hidden_layers": 4, "num_attention_heads": 1},
]


@pytest.mark.parity
@pytest.mark.parametrize("fields", VARIANTS, ids=range(len(VARIANTS)))
def test_equals_pytorch_on_random_models(tmp_path, fields):
    """As long as the model allows, with rows of half that and of one real token."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SMALL, **fields, "initializer_range": 0.3})
    theirs = transformers.BertModel(config, add_pooling_layer=True).eval()
    for parameter in theirs.parameters():  # biases and norms too, which start as zeros and ones
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    length = config.max_position_embeddings
    ids = rng.integers(0, config.vocab_size, (4, length))
    types = rng.integers(0, config.type_vocab_size, (4, length))
    mask = (np.arange(length) < np.array([[length], [max(1, length // 2)], [1], [length]])).astype(np.int64)
    encoder = svt_jax.load_encoder(tmp_path)
    ours = encoder(ids, mask, types, output_hidden_states=True)
    assert_parity(ours, torch_outputs(theirs, ids, mask, types))
    if not fields:  # a sequence of one token
        one = ids[:, :1], mask[:, :1], types[:, :1]
        assert_parity(encoder(*one, output_hidden_states=True), torch_outputs(theirs, *one))


@pytest.mark.parity
@pytest.mark.model
def test_equals_pytorch_on_the_real_model(minilm):
    import transformers

    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = ["A short one.", "A rather longer sentence, which makes the first one need a good deal of padding."]
    batch = {k: np.asarray(v) for k, v in tokenizer(texts, padding=True).items()}
    arguments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    ours = svt_jax.load_encoder(minilm)(*arguments, output_hidden_states=True)
    assert_parity(ours, torch_outputs(theirs, *arguments))


@pytest.mark.parity
def test_classifier_equals_pytorch(tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path)
    ours = svt_jax.load_classifier(tmp_path, num_labels=3)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(ours(IDS), expected, atol=1e-5)


@pytest.mark.model
def test_the_real_model_reads_every_number_from_its_config(minilm):
    encoder = svt_jax.load_encoder(minilm)
    assert encoder.config == EncoderConfig.from_hf(json.loads((minilm / "config.json").read_text()))
    assert (encoder.config.layer_norm_eps, encoder.config.hidden_act) == (1e-12, "gelu")
    assert len(nnx.to_flat_state(nnx.state(encoder))) == 103


def test_nothing_of_the_checkpoint_is_left_open(checkpoint):
    """Files copied, renamed or removed after loading do not matter: arrays are copies."""
    encoder = svt_jax.load_encoder(checkpoint)
    before = np.asarray(encoder(IDS).last_hidden_state)
    shutil.rmtree(checkpoint)
    assert np.array_equal(before, encoder(IDS).last_hidden_state)
