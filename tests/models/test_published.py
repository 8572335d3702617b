"""The published models' own numbers: classifiers of the authors' code, with and without the transformation.

The files hold what the authors' code computed in float32 and float64 (see the README beside them). All nine compare.
The `head` runs use the code as published. The `nocoin` runs leave out the coin that replaces the transformation by a
layer norm in RoBERTa and DistilBERT. The published code also computes the following. We do not compare it: it is no
placement of this library but an accident of that code, or it does not run at all (`what_runs.json`):

- ALBERT with the transformation: a new, extra layer norm after the whole layer, with the layer's input as the residual,
  and the names of before and after swapped.
- RoBERTa and DistilBERT as published: the coin shows a layer norm 29 times in 30 and crashes the 30th time;
  DistilBERT's layer norm has the feed-forward's width and fails.
- RoBERTa with two or more padding tokens in one example: padding rows are equal there, the decomposition is not unique,
  and the authors' gradients reach 1e61. The RoBERTa files have at most one padding token.
- `origin`, the layer norm with ddof 1 and epsilon outside the root; modules that exist and are never called.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

import svt_jax
from svt_jax.models.checkpoint_names import encoder_names, head_names, prefix
from svt_jax.models.slot import SVTParam, _bounded

pytestmark = [pytest.mark.shared, pytest.mark.slow]

# file -> (function, placement); all in the last layer, with padding in the decomposition
FILES = {
    "bert_add_last_beforeln__head": ("soft_decay", "before_norm"),
    "bert_add_last_beforeln_T36__head": ("soft_decay", "before_norm"),
    "roberta_none__head": ("none", "before_norm"),
    "roberta_add_last_beforeln_lastonly__nocoin": ("soft_decay", "before_norm"),
    "distilbert_none__head": ("none", "before_norm"),
    "distilbert_add_last_beforeln__nocoin": ("soft_decay", "before_norm"),
    "distilbert_add_last_afterln__nocoin": ("soft_decay", "after_norm"),
    "distilbert_add_last_beforeln_lnv-shift__nocoin": ("log_shift", "before_norm"),
    "albert_none__head": ("none", "before_norm"),
}
LAST = 2


def test_every_file_is_compared(shared):
    assert {path.stem for path in (shared / "golden" / "models").glob("*.npz")} == set(FILES)


def transformation(file, arrays):
    function, placement = FILES[file]
    alpha = [float(v) for k, v in arrays.items() if k.startswith("w/") and f"{LAST}." in k and k.endswith(".alpha")]
    start = {"alpha": alpha[0]} if function == "soft_decay" else {}
    return svt_jax.SVTConfig(function, placement=placement, mask_padding=False, **start)


def load(folder, file, arrays, svt=None):
    """The classifier of a file, without the authors' extra modules."""
    (folder / "config.json").write_text(str(arrays["config_json"]))
    tensors = {k.removeprefix("w/"): v for k, v in arrays.items() if k.startswith("w/")}
    unused = ("exrank_layer", "rescale_weight", "encoder.full_layer_layer_norm")
    save_file(
        {name: t for name, t in tensors.items() if not any(part in name for part in unused)},
        folder / "model.safetensors",
    )
    return svt_jax.load_classifier(folder, num_labels=3, svt=svt or transformation(file, arrays))


def batch(arrays):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [jnp.asarray(arrays[f"in/{name}"].astype(np.int32)) if f"in/{name}" in arrays else None for name in names]


@pytest.fixture(params=list(FILES))
def published(request, golden, tmp_path):
    """(file, its arrays, our model)"""
    arrays = golden(f"models/{request.param}.npz")
    return request.param, arrays, load(tmp_path, request.param, arrays)


def test_forward_loss_and_gradients_are_the_published_ones(published):
    file, arrays, model = published
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = jnp.asarray(arrays["in/labels"].astype(np.int32))

    def cross_entropy(params):  # not jitted: the nine files share what is compiled
        logits = nnx.merge(graphdef, params, rest)(*batch(arrays))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (loss, logits), grads = jax.value_and_grad(cross_entropy, has_aux=True)(params)
    states = model.encoder(*batch(arrays), output_hidden_states=True).hidden_states
    for n, state in enumerate(states):
        np.testing.assert_allclose(state, arrays[f"out64/hidden_states.{n}"], atol=1e-4, rtol=0, err_msg=f"layer {n}")
    assert len(states) == LAST + 2
    np.testing.assert_allclose(logits, arrays["out64/logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(loss, arrays["out64/loss"], atol=1e-5, rtol=0)

    ours = {"/".join(map(str, k)): np.asarray(v.get_value()) for k, v in nnx.to_flat_state(grads)}
    config = model.encoder.config
    names = {
        prefix(config) + theirs: (f"encoder/{path}", change) for theirs, (path, change) in encoder_names(config).items()
    }
    names |= head_names(config)
    checked = 0
    # the key's bias has zero gradient, since softmax ignores it: rounding is measured against the others
    largest = max(np.abs(v).max() for k, v in arrays.items() if k.startswith("grad64/") and "exrank" not in k)
    for theirs, (path, change) in names.items():
        expected = arrays.get(f"grad64/{theirs}")
        if expected is None:  # RoBERTa's pooler
            assert path not in ours, path
            continue
        got = change(ours.pop(path))
        if "word_embeddings" in theirs or ("position_embeddings" in theirs and config.positions_skip_padding):
            # although padding takes part in these decompositions
            assert not expected[config.pad_token_id].any()
            assert not got[config.pad_token_id].any()
        tolerance = max(1e-3 * np.abs(expected).max(), 1e-6 * largest)
        np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0, err_msg=theirs)
        checked += 1
    assert checked == len([k for k in arrays if k.startswith("grad64/") and "exrank" not in k])
    alphas = {k: v for k, v in arrays.items() if k.startswith("grad64/") and k.endswith("alpha")}
    if FILES[file][0] == "soft_decay":
        path, stored = next(iter(nnx.to_flat_state(nnx.state(model, SVTParam))))
        chain = jax.grad(lambda s: _bounded(s, (-1.0, 0.0)))(stored.get_value())
        (expected,) = alphas.values()
        np.testing.assert_allclose(ours.pop("/".join(map(str, path))) / chain, expected, rtol=1e-3)
    assert all("svt" in path for path in ours), ours.keys()


@pytest.mark.parametrize("file", [f for f in FILES if FILES[f][0] != "none"])
def test_masking_padding_changes_the_padded_examples_alone(golden, tmp_path, file):
    """Why `mask_padding: false` exists: with true, examples with padding differ from the published numbers."""
    arrays = golden(f"models/{file}.npz")
    config = json.loads(str(arrays["config_json"]))
    svt = transformation(file, arrays)
    masked = svt_jax.SVTConfig(svt.function, placement=svt.placement, alpha=svt.alpha)
    model = load(tmp_path, file, arrays, masked)
    out = np.asarray(model.encoder(*batch(arrays)).last_hidden_state)
    error = np.abs(out - arrays[f"out64/hidden_states.{LAST + 1}"]).max((1, 2))
    padded = (arrays["in/attention_mask"] == 0).any(1)
    assert 0 < padded.sum() < len(padded)
    assert (error[~padded] < 1e-4).all()
    assert (error[padded] > 1e-2).all(), config["model_type"]
