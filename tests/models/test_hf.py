"""Weights from Hugging Face: what is read and drawn, every discrepancy reported at once, the real model."""

import json
import shutil

import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny import rewrite

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.families import FAMILIES
from svt_jax.models.hf import has_head

IDS = np.random.default_rng(1).integers(0, 40, (2, 5)).astype(np.int32)


def test_tensors_of_ones_own_are_an_error_unless_they_are_named(checkpoint, caplog):
    plain = svt_jax.load_encoder(checkpoint)
    own = {"module.my_head.weight": (2, 12), "module.my_head.bias": (2,), "module.temperature": ()}
    rewrite(checkpoint, lambda t: t.update({name: np.ones(shape, np.float32) for name, shape in own.items()}))
    words = "module.temperature .* is not a tensor of this architecture.*tensors of your own can be left out by ignore="
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint, ignore=["my_head.*"])
    for ignore in (("my_head.*", "temperature"), "module.*"):
        caplog.clear()
        again = svt_jax.load_encoder(checkpoint, ignore=ignore)
        assert f"left out, as this model has no such part: {', '.join(sorted(own))}" in caplog.text
        np.testing.assert_array_equal(plain.layers[1].up.kernel[...], again.layers[1].up.kernel[...])
    svt_jax.load_classifier(checkpoint, num_labels=2, ignore="module.*")


def test_a_tensor_of_the_encoder_is_read_whatever_is_left_out(checkpoint):
    plain, again = svt_jax.load_encoder(checkpoint), svt_jax.load_encoder(checkpoint, ignore="*")
    np.testing.assert_array_equal(plain.layers[1].up.kernel[...], again.layers[1].up.kernel[...])


def test_an_error_is_one_short_line_however_many_tensors_do_not_fit(checkpoint):
    def rename(tensors):
        for name in list(tensors):
            tensors["teacher.\x1b[2J" + name + "x" * 1000] = tensors.pop(name)

    rewrite(checkpoint, rename)
    with pytest.raises(ValueError) as raised:
        svt_jax.load_encoder(checkpoint)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 2500
    assert "and 33 more" in message
    assert "is missing" in message
    assert "is not a tensor of this architecture" in message


# Each would leave out tensors of the file, and so compute other numbers.
DISOWNING = {
    "bert": [{"type_vocab_size": 0}, {"num_hidden_layers": 1}, {"type_vocab_size": 1}, {"max_position_embeddings": 8}],
    "roberta": [{"type_vocab_size": 0}, {"num_hidden_layers": 1}, {"vocab_size": 20}],
    "distilbert": [{"num_hidden_layers": 1}, {"max_position_embeddings": 8}],
    "albert": [
        {"type_vocab_size": 0},
        {"num_hidden_groups": 1},
        {"inner_group_num": 1},
        {"embedding_size": 4},
        {"num_hidden_layers": 1},
    ],
    "electra": [{"embedding_size": 12}, {"type_vocab_size": 1}],
    "modernbert": [
        {"norm_bias": False},
        {"attention_bias": False},
        {"up_bias": False},
        {"layer_types": ["full_attention"]},
    ],
    "nomic_bert": [{"type_vocab_size": 1}, {"num_hidden_layers": 1}],
    "gte": [{"type_vocab_size": 0}],
    "esm": [{"embedding_norm": False}, {"num_hidden_layers": 1}],
    "mpnet": [{"relative_buckets": 33}, {"num_hidden_layers": 1}],
}
DISOWNED = {
    "albert": {"num_hidden_groups": 2, "inner_group_num": 2},
    "modernbert": {"norm_bias": True, "attention_bias": True, "up_bias": True},
    "esm": {"embedding_norm": True},
}


DISOWNING_WORDS = "is not a tensor of this architecture| gives |num_hidden_groups 2 is more|layer_types names 1 layers"


@pytest.mark.parametrize(("family", "changes"), [(f, c) for f, changes in DISOWNING.items() for c in changes])
def test_a_config_that_disowns_a_tensor_is_an_error(tmp_path, family, changes):
    svt_jax.export_hf(tiny.encoder(family, **DISOWNED.get(family, {})), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = FAMILIES[family].fields
    (tmp_path / "config.json").write_text(json.dumps(config | {names[n][0]: value for n, value in changes.items()}))
    with pytest.raises(ValueError, match=DISOWNING_WORDS):
        svt_jax.load_encoder(tmp_path)
    with pytest.raises(ValueError, match=DISOWNING_WORDS):
        svt_jax.load_classifier(tmp_path, num_labels=2)


def test_a_pooler_that_the_family_has_not_is_an_error(tmp_path):
    svt_jax.export_hf(tiny.encoder("distilbert"), tmp_path)
    rewrite(tmp_path, lambda t: t.update({"pooler.dense.weight": np.zeros((12, 12), np.float32)}))
    with pytest.raises(ValueError, match=r"pooler.dense.weight \[12, 12\] is not a tensor of this architecture"):
        svt_jax.load_encoder(tmp_path)


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


def test_every_discrepancy_is_reported_at_once_with_names_and_shapes(checkpoint, caplog):
    def damage(tensors):
        del tensors["encoder.layer.1.attention.self.key.bias"]
        tensors["embeddings.word_embeddings.weight"] = np.zeros((39, 12), np.float32)
        tensors["encoder.layer.2.output.dense.bias"] = np.zeros(12, np.float32)
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(12, np.int32)

    rewrite(checkpoint, damage)
    with pytest.raises(ValueError) as raised:
        svt_jax.load_classifier(checkpoint, num_labels=2)
    assert caplog.text == "", "the error is to be the only line"
    message = str(raised.value)
    assert "encoder.layer.1.attention.self.key.bias is missing (encoder/layers/1/attention/key/bias [12])" in message
    assert "embeddings.word_embeddings.weight gives [39, 12] for encoder/embeddings/word/embedding [40, 12]" in message
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
        (lambda f: (f / "model.safetensors.index.json").write_text("["), "is not JSON"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[" * 100_000), "is nested too deeply"),
        (lambda f: (f / "config.json").write_text('{"a":' * 100_000), "is nested too deeply"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "is not JSON"),
    ],
)
def test_a_broken_folder_is_an_error_that_says_what_to_do(checkpoint, prepare, words):
    prepare(checkpoint)
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint)


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_each_familys_pooler_may_be_missing_but_not_halved(tmp_path, caplog, family):
    svt_jax.export_hf(tiny.encoder(family), tmp_path)
    name = {"roberta": "pooler.dense", "albert": "pooler"}[family]
    rewrite(tmp_path, lambda t: t.pop(f"{name}.bias"))
    with pytest.raises(ValueError, match=rf"{name}.bias is missing \(pooler/dense/bias \[12\]\)"):
        svt_jax.load_encoder(tmp_path)
    rewrite(tmp_path, lambda t: t.pop(f"{name}.weight"))
    assert svt_jax.load_encoder(tmp_path)(IDS).pooled.shape == (2, 12)
    assert "has no pooler: it starts from random values" in caplog.text


def test_robertas_classifier_has_no_pooler(tmp_path, caplog):
    svt_jax.export_hf(tiny.encoder("roberta"), tmp_path)
    classifier = svt_jax.load_classifier(tmp_path, num_labels=2)
    assert classifier.encoder.pooler is None
    assert "left out, as this model has no such part: pooler.dense.bias, pooler.dense.weight" in caplog.text


@pytest.mark.parametrize("family", tiny.families(FAMILIES))
def test_a_head_of_each_family_is_loaded_whole_or_not_at_all(tmp_path, caplog, family):
    model = tiny.classifier(family, num_labels=2)
    svt_jax.export_hf(model, tmp_path)
    assert has_head(tmp_path, 2)
    assert not has_head(tmp_path, 3)
    names = sorted(n for n in load_file(tmp_path / "model.safetensors") if "classifier" in n)
    rewrite(tmp_path, lambda t: t.pop(names[0]))
    assert not has_head(tmp_path, 2)
    drawn = svt_jax.load_classifier(tmp_path, num_labels=2)
    assert f"left out, as this model has no such part: {', '.join(names[1:])}" in caplog.text
    assert not np.array_equal(drawn.classifier.kernel[...], model.classifier.kernel[...])


def test_every_discrepancy_of_shared_weights_is_reported_too(tmp_path):
    svt_jax.export_hf(tiny.encoder("albert", num_hidden_groups=2, inner_group_num=2), tmp_path)
    layer = "encoder.albert_layer_groups.{}.albert_layers.{}"

    def damage(tensors):
        del tensors[f"{layer.format(1, 0)}.ffn.bias"]
        tensors[f"{layer.format(0, 1)}.ffn.bias"] = np.zeros(3, np.float32)
        tensors[f"{layer.format(2, 0)}.ffn.bias"] = np.zeros(20, np.float32)
        tensors["encoder.embedding_hidden_mapping_in.bias"] = np.zeros(12, np.int64)
        tensors["albert.pooler.bias"] = tensors["pooler.bias"]

    rewrite(tmp_path, damage)
    with pytest.raises(ValueError, match="albert.pooler.bias is given twice|pooler.bias is given twice"):
        svt_jax.load_encoder(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("albert.pooler.bias"))
    with pytest.raises(ValueError) as raised:
        svt_jax.load_encoder(tmp_path)
    message = str(raised.value)
    assert f"{layer.format(1, 0)}.ffn.bias is missing (layers/2/up/bias [20])" in message
    assert f"{layer.format(0, 1)}.ffn.bias gives [3] for layers/1/up/bias [20]" in message
    assert f"{layer.format(2, 0)}.ffn.bias [20] is not a tensor of this architecture" in message
    assert "encoder.embedding_hidden_mapping_in.bias is int64, not floating point" in message


def torch_outputs(model, ids, mask, types):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids), torch.tensor(mask), torch.tensor(types), output_hidden_states=True)


def assert_parity(ours, theirs):
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.pooled, theirs.pooler_output.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
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


@pytest.mark.model
def test_the_real_model_reads_every_number_from_its_config(minilm):
    encoder = svt_jax.load_encoder(minilm)
    assert encoder.config == EncoderConfig.from_hf(json.loads((minilm / "config.json").read_text()))
    assert (encoder.config.layer_norm_eps, encoder.config.hidden_act) == (1e-12, "gelu")
    assert len(nnx.to_flat_state(nnx.state(encoder))) == 103


def test_nothing_of_the_checkpoint_is_left_open(checkpoint):
    """Arrays are copies, so files may be copied, renamed or removed after loading."""
    encoder = svt_jax.load_encoder(checkpoint)
    before = np.asarray(encoder(IDS).last_hidden_state)
    shutil.rmtree(checkpoint)
    assert np.array_equal(before, encoder(IDS).last_hidden_state)
