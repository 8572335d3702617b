"""Weights out and in again: every family, with and without a head, with and without an SVT."""

import json

import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file

import svt_jax
from svt_jax.models.families import FAMILIES
from svt_jax.models.svt_layer import SVTConstant

SVT = svt_jax.SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.3, -0.6], placement="output", mask_padding=False)


def weights(model):
    return {"/".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(model))}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def move_alpha(encoder):
    """As after training: away from where the config says that it starts."""
    for layer in encoder.layers:
        if layer.svt is not None:
            alpha = layer.svt.parameters["alpha"]
            alpha.set_value(alpha.get_value() + 0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_labels", [None, 1, 3])
def test_what_is_exported_is_read_back_bit_for_bit(tmp_path, caplog, family, num_labels):
    if num_labels is None:
        model = tiny.encoder(family)
        svt_jax.export_hf(model, tmp_path / "new")
        again = svt_jax.load_encoder(tmp_path / "new")
    else:
        model = tiny.classifier(family, num_labels=num_labels)
        svt_jax.export_hf(model, tmp_path / "new")
        again = svt_jax.load_classifier(tmp_path / "new", num_labels=num_labels)
    assert caplog.text == ""
    assert_same_weights(model, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_svt_is_refused_and_the_ways_out_are_named(tmp_path, family):
    with pytest.raises(ValueError, match="soft_decay, which transformers cannot compute; pass svt='drop'.*svt='keep'"):
        svt_jax.export_hf(tiny.classifier(family, SVT), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_classes_have_the_names_given_and_there_are_as_many(tmp_path):
    model = tiny.classifier("bert", num_labels=3)
    with pytest.raises(ValueError, match=r"2 labels \(no, yes\) for 3 classes"):
        svt_jax.export_hf(model, tmp_path / "new", labels=["no", "yes"])
    assert not (tmp_path / "new").exists()
    svt_jax.export_hf(model, tmp_path / "new", labels=iter(["no", "yes", "both"]))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "both"}
    assert config["label2id"] == {"no": 0, "yes": 1, "both": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_the_svt_leaves_the_plain_models_files(tmp_path, family):
    model = tiny.classifier(family, SVT)
    svt_jax.export_hf(model, tmp_path / "dropped", svt="drop")
    svt_jax.export_hf(tiny.classifier(family), tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "dropped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert svt_jax.load_encoder(tmp_path / "dropped").alphas == {}


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_svt_comes_back_with_its_settings_and_parameters(tmp_path, caplog, family, learnable):
    changes = {"inner_group_num": 2} if family == "albert" else {}
    config = svt_jax.SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.3, -0.6], learnable=learnable)
    model = tiny.classifier(family, config, **changes)
    move_alpha(model.encoder)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    names = load_file(tmp_path / "model.safetensors").keys()
    last = model.encoder.config.num_layers - 1
    assert {n for n in names if n.startswith("svt.")} == {f"svt.layers.{n}.parameters.alpha" for n in (0, last)}
    again = svt_jax.load_classifier(tmp_path, num_labels=3)
    assert caplog.text == ""
    assert again.encoder.svt_config == config
    assert_same_weights(model, again)
    assert len(nnx.to_flat_state(nnx.state(again, SVTConstant))) == (0 if learnable else 2)
    # the encoder alone has it too, and the head is left out by name
    assert svt_jax.load_encoder(tmp_path).alphas == model.encoder.alphas
    assert "left out, as this model has no such part: classifier" in caplog.text


def test_an_svt_that_the_caller_chooses_starts_anew(tmp_path, caplog):
    model = tiny.encoder("bert", SVT)
    move_alpha(model)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    chosen = svt_jax.load_encoder(tmp_path, svt=svt_jax.SVTConfig("soft_decay", alpha=-0.4))
    assert {n: pytest.approx(float(a)) for n, a in chosen.alphas.items()} == {1: -0.4}
    assert (
        "not read, for the SVT that was asked for starts from its own values: svt.layers.0.parameters.alpha"
        in caplog.text
    )
    assert svt_jax.load_encoder(tmp_path, svt=svt_jax.SVTConfig("none")).alphas == {}


@pytest.mark.parametrize("damage", ["missing", "settings"])
def test_a_damaged_svt_is_an_error(tmp_path, damage):
    from safetensors.numpy import save_file

    svt_jax.export_hf(tiny.encoder("bert", SVT), tmp_path, svt="keep")
    if damage == "missing":
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["svt.layers.1.parameters.alpha"]
        save_file(tensors, tmp_path / "model.safetensors")
        words = r"svt.layers.1.parameters.alpha is missing \(layers/1/svt/parameters/alpha \[\]\)"
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        config["svt_jax"]["svt"]["twist"] = 1
        (tmp_path / "config.json").write_text(json.dumps(config))
        words = "svt_jax is none that this version wrote .*twist"
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "vocab.txt").write_text("a tokenizer may be there")
    with pytest.raises(ValueError, match=f"has {name} already, and nothing is overwritten"):
        svt_jax.export_hf(tiny.encoder("bert"), tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_arguments_are_errors(tmp_path):
    with pytest.raises(ValueError, match="svt is 'yes'; allowed are 'drop' and 'keep'"):
        svt_jax.export_hf(tiny.encoder("bert"), tmp_path, svt="yes")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        svt_jax.export_hf(tiny.encoder("bert"), tmp_path / "file" / "folder")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_body_is_exported_in_float32(tmp_path, family):
    import jax.numpy as jnp

    model = tiny.encoder(family, dtype=jnp.bfloat16)
    svt_jax.export_hf(model, tmp_path)
    assert {str(t.dtype) for t in load_file(tmp_path / "model.safetensors").values()} == {"float32"}
    assert_same_weights(model, svt_jax.load_encoder(tmp_path))


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_labels", [None, 1, 3])
def test_transformers_loads_it_without_a_word_and_computes_the_same(tmp_path, caplog, family, num_labels):
    import torch
    import transformers

    changes = {"num_hidden_groups": 2, "inner_group_num": 2} if family == "albert" else {}
    ids, mask = torch.tensor(tiny.IDS).long(), torch.tensor(tiny.MASK)
    if num_labels is None:
        model = tiny.encoder(family, **changes)
        cls, ours = transformers.AutoModel, model(tiny.IDS, tiny.MASK).last_hidden_state
    else:
        model = tiny.classifier(family, num_labels=num_labels, **changes)
        cls, ours = transformers.AutoModelForSequenceClassification, model(tiny.IDS, tiny.MASK)
    svt_jax.export_hf(model, tmp_path)
    transformers.logging.enable_propagation()  # to caplog
    try:
        theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        transformers.logging.disable_propagation()
    assert not any(info.values()), info
    assert caplog.text == ""
    assert type(theirs).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    with torch.no_grad():
        out = theirs.eval()(ids, mask)
    expected = out.last_hidden_state if num_labels is None else out.logits
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5, rtol=0)
    if num_labels == 1:  # regression, as transformers understands a single label
        assert theirs(ids, mask, labels=torch.tensor([0.5, -0.5])).loss.dtype == torch.float32


@pytest.mark.parity
def test_transformers_loads_a_kept_svt_as_the_plain_model(tmp_path):
    import torch
    import transformers

    svt_jax.export_hf(tiny.classifier("roberta", SVT), tmp_path, svt="keep")
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("svt.") for name in info["unexpected_keys"])
    assert not info["missing_keys"]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tiny.IDS).long(), torch.tensor(tiny.MASK)).logits.numpy()
    np.testing.assert_allclose(tiny.classifier("roberta")(tiny.IDS, tiny.MASK), expected, atol=1e-5)
