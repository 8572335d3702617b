"""Export and import of weights: every family, with and without a head, with and without an SVT."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file, save_file

import svt_jax
from svt_jax.models.families import FAMILIES
from svt_jax.models.slot import SVTConstant

SVT = svt_jax.SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.3, -0.6], placement="output", mask_padding=False)


def with_labels(*numbers):
    """Every family without a head and with the last of these numbers of labels, some with one label too.

    By default only the fast families with the last, and BERT with all.
    """
    cases = [(family, number) for family in FAMILIES for number in numbers if number != 1 or family in tiny.FAST]
    fast = lambda family, number: family == "bert" or (family in tiny.FAST and number == numbers[-1])
    return [pytest.param(*each, marks=[] if fast(*each) else pytest.mark.slow) for each in cases]


def weights(model):
    return {"/".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(model))}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def move_parameters(encoder, by=0.5):
    """Moves the SVT parameters away from the config's start values, as training does."""
    for layer in encoder.layers:
        if layer.svt is not None:
            for parameter in layer.svt.parameters.values():
                parameter.set_value(parameter.get_value() + by)


def as_earlier_versions(folder, encoder):
    """Rewrites an export in the old form: stored parameters among the tensors, no values in config.json."""
    config = json.loads((folder / "config.json").read_text())
    del config["svt_jax"]["parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for n, layer in enumerate(encoder.layers):
        if layer.svt is not None:
            stored = {name: np.asarray(parameter[...]) for name, parameter in layer.svt.parameters.items()}
            tensors |= {f"svt.layers.{n}.parameters.{name}": array for name, array in stored.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(("family", "num_labels"), with_labels(None, 1, 3))
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


@pytest.mark.parametrize("family", tiny.families(fast=("bert", "modernbert")))
def test_a_model_with_svt_is_refused_and_the_ways_out_are_named(tmp_path, family):
    with pytest.raises(ValueError, match="soft_decay, which transformers cannot compute; pass svt='drop'.*svt='keep'"):
        svt_jax.export_hf(tiny.classifier(family, SVT), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_classes_have_the_names_given_and_there_are_as_many(tmp_path):
    model = tiny.classifier("bert", num_labels=3)
    with pytest.raises(ValueError, match=r"2 labels \(no, yes\) for 3 classes"):
        svt_jax.export_hf(model, tmp_path / "new", labels=["no", "yes"])
    with pytest.raises(
        ValueError, match=r"3 labels \(no, no, yes\) for 3 classes; allowed is a different one for each"
    ):
        svt_jax.export_hf(model, tmp_path / "new", labels=["no", "no", "yes"])
    assert not (tmp_path / "new").exists()
    svt_jax.export_hf(model, tmp_path / "new", labels=iter(["no", "yes", "both"]))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "both"}
    assert config["label2id"] == {"no": 0, "yes": 1, "both": 2}


@pytest.mark.parametrize(("family", "num_labels"), with_labels(1, 3))
def test_a_config_says_what_is_done_to_the_logits(tmp_path, family, num_labels):
    svt_jax.export_hf(tiny.classifier(family, num_labels=num_labels), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == {1: "regression", 3: "single_label_classification"}[num_labels]
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert config.get("sentence_transformers") == {1: identity, 3: None}[num_labels]
    assert len(config["id2label"]) == num_labels


@pytest.mark.parametrize("family", tiny.families(FAMILIES))
def test_dropping_the_svt_leaves_the_plain_models_files(tmp_path, family):
    model = tiny.classifier(family, SVT)
    svt_jax.export_hf(model, tmp_path / "dropped", svt="drop")
    svt_jax.export_hf(tiny.classifier(family), tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "dropped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert svt_jax.load_encoder(tmp_path / "dropped").alphas == {}


@pytest.mark.parametrize("learnable", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", tiny.families(FAMILIES))
def test_a_kept_svt_comes_back_with_its_settings_and_parameters(tmp_path, caplog, family, learnable):
    changes = {"inner_group_num": 2} if family == "albert" else {}
    config = svt_jax.SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.3, -0.6], learnable=learnable)
    model = tiny.classifier(family, config, **changes)
    move_parameters(model.encoder)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    assert not any(n.startswith("svt.") for n in load_file(tmp_path / "model.safetensors"))
    again = svt_jax.load_classifier(tmp_path, num_labels=3)
    assert caplog.text == ""
    assert again.encoder.svt_config == model.encoder.svt_config
    assert_same_weights(model, again)
    assert len(nnx.to_flat_state(nnx.state(again, SVTConstant))) == (0 if learnable else 2)
    # the encoder also has it, and leaves the head out without a word
    assert svt_jax.load_encoder(tmp_path).alphas == model.encoder.alphas
    assert "classifier" not in caplog.text


FUNCTIONS = {  # start values, and how far their stored values move
    "soft_decay": ({"alpha": -0.2}, 0.5),
    "soft_exponential": ({"alpha": 0.3}, -0.7),
    "log_shift": ({"params": {"gamma": 5.0}}, 1.5),
    "linear": ({}, 3.0),
    "contra_norm": ({}, 0.5),
    "average": ({}, 0.0),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_function_has_learned_is_exported_by_name_inside_its_bounds(tmp_path, caplog, function):
    start, by = FUNCTIONS[function]
    model = tiny.classifier("bert", svt_jax.SVTConfig(function, layers=[0, 1], **start))
    move_parameters(model.encoder, by)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    kept = json.loads((tmp_path / "config.json").read_text())["svt_jax"]["parameters"]
    assert kept.keys() == {"0", "1"}
    for n, named in kept.items():
        now = model.encoder.layers[int(n)].svt.function
        assert {name: pytest.approx(float(getattr(now, name)), abs=1e-6) for name in named} == named
        assert len(named) == (function != "average")
        first = model.encoder.svt_config.make_function(model.encoder.svt_config.alpha)
        assert all(abs(value - getattr(first, name)) > 1e-3 for name, value in named.items())
    again = svt_jax.load_classifier(tmp_path, num_labels=3)
    assert caplog.text == ""
    assert_same_weights(model, again)
    np.testing.assert_array_equal(again(tiny.IDS, tiny.MASK), model(tiny.IDS, tiny.MASK))


@pytest.mark.parametrize("stored", [-300.0, -25.0, -14.0, -3.3, 0.0, 7.7, 14.0, 25.0, 300.0])
@pytest.mark.parametrize("function", ["soft_decay", "log_shift"])
def test_a_value_at_the_end_of_its_interval_comes_back_as_it_was(tmp_path, function, stored):
    model = tiny.encoder("bert", svt_jax.SVTConfig(function, layers=[1]))
    (parameter,) = model.layers[1].svt.parameters.values()
    parameter.set_value(jnp.asarray(stored, jnp.float32))
    svt_jax.export_hf(model, tmp_path, svt="keep")
    again = svt_jax.load_encoder(tmp_path).layers[1].svt
    assert again.function == model.layers[1].svt.function
    if abs(stored) < 15:
        (parameter,) = again.parameters.values()
        assert float(parameter[...]) == np.float32(stored)


@pytest.mark.parametrize("function", ["soft_decay", "log_shift"])
def test_exports_of_earlier_versions_are_read(tmp_path, caplog, function):
    model = tiny.classifier("bert", svt_jax.SVTConfig(function, layers=[0, 1]))
    move_parameters(model.encoder)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    as_earlier_versions(tmp_path, model.encoder)
    again = svt_jax.load_classifier(tmp_path, num_labels=3)
    assert caplog.text == ""
    assert_same_weights(model, again)


def test_an_svt_that_the_caller_chooses_starts_anew(tmp_path, caplog):
    model = tiny.encoder("bert", SVT)
    move_parameters(model)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    chosen = svt_jax.load_encoder(tmp_path, svt=svt_jax.SVTConfig("soft_decay", alpha=-0.4))
    assert {n: pytest.approx(float(a)) for n, a in chosen.alphas.items()} == {1: -0.4}
    assert "is not read, for the one that was asked for starts from its own values" in caplog.text
    assert svt_jax.load_encoder(tmp_path, svt=svt_jax.SVTConfig("none")).alphas == {}
    as_earlier_versions(tmp_path, model)
    chosen = svt_jax.load_encoder(tmp_path, svt=svt_jax.SVTConfig("soft_decay", alpha=-0.4))
    assert {n: pytest.approx(float(a)) for n, a in chosen.alphas.items()} == {1: -0.4}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s["svt"].update(twist=1), "svt_jax is none that this version wrote .*twist"),
        (lambda s: s.update(parameters=[]), "svt_jax is none that this version wrote"),
        (lambda s: s.update(parameters={"0": -0.3}), "svt_jax is none that this version wrote"),
        (lambda s: s["parameters"].pop("1"), "svt_jax has parameters of the layers 0, not 0, 1"),
        (lambda s: s["parameters"]["1"].update(beta=1.0), "svt_jax, layer 1: the parameters are alpha, beta and not alpha"),
        (lambda s: s["parameters"]["1"].update(alpha="x"), r"layer 1: alpha is 'x', which does not lie in \(-1, 0\)"),
        (lambda s: s["parameters"]["1"].update(alpha=0.0), r"layer 1: alpha is 0.0, which does not lie in \(-1, 0\)"),
        (lambda s: s["parameters"]["1"].update(alpha=[-0.1]), r"layer 1: alpha is \[-0.1\], which does not lie in"),
    ],
)  # fmt: skip
def test_a_damaged_svt_is_an_error(tmp_path, damage, words):
    svt_jax.export_hf(tiny.encoder("bert", SVT), tmp_path, svt="keep")
    config = json.loads((tmp_path / "config.json").read_text())
    damage(config["svt_jax"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(tmp_path)


def test_an_earlier_versions_svt_is_read_whole_or_not_at_all(tmp_path):
    model = tiny.encoder("bert", SVT)
    svt_jax.export_hf(model, tmp_path, svt="keep")
    as_earlier_versions(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["svt.layers.1.parameters.alpha"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"svt.layers.1.parameters.alpha is missing \(layers/1/svt/parameters/alpha \[\]\)"
    ):
        svt_jax.load_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["svt_jax"]  # without it the same tensors are another model
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"svt.layers.0.parameters.alpha \[\] is not a tensor of this architecture"):
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


@pytest.mark.parametrize("family", tiny.families(fast=("bert", "modernbert")))
def test_a_bfloat16_body_is_exported_in_float32(tmp_path, family):
    model = tiny.encoder(family, dtype=jnp.bfloat16)
    svt_jax.export_hf(model, tmp_path)
    assert {str(t.dtype) for t in load_file(tmp_path / "model.safetensors").values()} == {"float32"}
    assert_same_weights(model, svt_jax.load_encoder(tmp_path))


@pytest.mark.parity
@pytest.mark.parametrize(("family", "num_labels"), with_labels(None, 1, 3))
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
    transformers.logging.enable_propagation()  # so that caplog sees the messages
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
    if num_labels == 1:  # transformers takes a single label as regression
        assert theirs(ids, mask, labels=torch.tensor([0.5, -0.5])).loss.dtype == torch.float32


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "num_labels"),
    [
        pytest.param(f, n, marks=[] if (f, n) in [("bert", 3), ("roberta", 1)] else pytest.mark.slow)
        for k, f in enumerate(FAMILIES)
        for n in (1, 3)
        if f in ("bert", "roberta") or n == (1, 3)[k % 2]
    ],
)
def test_pipeline_and_cross_encoder_give_what_the_model_gives(tmp_path, family, num_labels):
    """The tokenizer's own settings would build other inputs."""
    import sentence_transformers
    import transformers

    from svt_jax.data.tokenizer import demo_tokenizer
    from svt_jax.evaluation.after_run import fit_tokenizer

    tokenizer = demo_tokenizer()
    tokenizer.padding_side, tokenizer.model_input_names = "left", ["input_ids", "attention_mask"]
    changes = {"type_vocab_size": 2} if "type_vocab_size" in FAMILIES[family].fields else {}
    model = tiny.classifier(family, num_labels=num_labels, vocab_size=len(tokenizer), **changes)
    svt_jax.export_hf(model, tmp_path)
    fit_tokenizer(tokenizer, model.encoder.config).save_pretrained(tmp_path)

    words = sorted(tokenizer.get_vocab())[-20:]
    pairs = [(" ".join(words[:3]), words[3]), (words[4], words[5])]
    batch = demo_tokenizer()(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="np")
    logits = np.asarray(model(**batch))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    rows = pipeline([{"text": one, "text_pair": other} for one, other in pairs], top_k=None, batch_size=2)
    scores = [[found["score"] for found in sorted(row, key=lambda each: each["label"])] for row in rows]
    np.testing.assert_allclose(scores, logits if num_labels == 1 else chances, atol=1e-5)
    assert len(pipeline({"text": " ".join(words * 3)}, truncation=True)) > 0  # cut to the model's positions
    cross_encoder = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    np.testing.assert_allclose(cross_encoder.predict(pairs).reshape(logits.shape), logits, atol=1e-5)


@pytest.mark.parity
def test_transformers_loads_a_kept_svt_as_the_plain_model(tmp_path):
    import torch
    import transformers

    svt_jax.export_hf(tiny.classifier("roberta", SVT), tmp_path, svt="keep")
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tiny.IDS).long(), torch.tensor(tiny.MASK)).logits.numpy()
    np.testing.assert_allclose(tiny.classifier("roberta")(tiny.IDS, tiny.MASK), expected, atol=1e-5)
