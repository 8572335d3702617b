"""Packed rows: the same numbers as one example in each row, whatever shares a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from svt_jax.data.batching import collate
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens
from svt_jax.models.packed import OneInEachRow, read_batch
from svt_jax.models.svt_config import POST_NORM_PLACEMENTS, SVTConfig

RNG = np.random.default_rng(0)
LENGTHS = np.array([7, 3, 5, 2, 4, 6, 1, 3], np.int32)
IDS = RNG.integers(3, 40, (8, 8)).astype(np.int32)
TYPES = (RNG.random((8, 8)) < 0.5).astype(np.int32)
TOKENS = Tokens.of_padded(IDS, TYPES, LENGTHS, RNG.integers(0, 3, 8), 0)
SHAPES = {
    "one group": Shape(rows=4, row_length=12, examples=10, longest=8),
    "two groups": Shape(rows=2, row_length=12, examples=4, longest=8, groups=2),
}
ROWS = np.arange(8)


def inputs(shape, rows=ROWS, tokens=TOKENS):
    """Ids, types and layout; and where each of `rows` stands among the examples."""
    batch = pack(tokens, rows, shape)
    place = {int(n): i for i, n in enumerate(batch["index"]) if batch["weights"][i]}
    arrays = {name: jnp.asarray(values) for name, values in batch.items() if name not in ("index", "labels")}
    return read_batch(arrays, **shape.static), np.array([place[int(n)] for n in rows])


def padded_inputs(family):
    batch = collate(TOKENS, ROWS, [8], 8)
    ids = np.where(batch["attention_mask"], batch["input_ids"], tiny.PADDING.get(family, 0))
    return jnp.asarray(ids), jnp.asarray(batch["token_type_ids"]), OneInEachRow(batch["attention_mask"].astype(bool))


def logits_and_gradient(model, ids, types, layout, order):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, ids, types, layout):
        def loss(params):
            logits, failures = nnx.merge(graphdef, params, rest).classify(ids, types, layout)
            return jnp.sum(jnp.sin(logits[order])), (logits[order], failures)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (logits, failures)), gradient = run(params, ids, types, layout)
    assert failures is None or not np.any(failures)
    return np.asarray(logits), gradient


def assert_same(model, family, shape, tolerance=1e-5):
    ids, types, layout = padded_inputs(family)
    logits, gradient = logits_and_gradient(model, ids, types, layout, ROWS)
    tokens = Tokens.of_padded(IDS, TYPES, LENGTHS, TOKENS.labels, tiny.PADDING.get(family, 0))
    packed, order = inputs(shape, tokens=tokens)
    ours, our_gradient = logits_and_gradient(model, *packed, order)
    np.testing.assert_allclose(ours, logits, atol=tolerance)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(our_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, largest))


def case(*values, fast=False):
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


FAST = [("bert", "one group"), ("roberta", "two groups"), ("modernbert", "one group")]


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *(case(*each, fast=True) for each in FAST),
        *(case(family, "two groups") for family in tiny.DIFFERENT if family != "roberta"),
    ],
)
def test_logits_and_gradients_are_those_of_padded_rows(family, shape):
    svt = SVTConfig("soft_decay", layers=(0, -1), dropout=0.0)
    assert_same(tiny.classifier(family, svt), family, SHAPES[shape])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert", {"pooling": "mean", "local_attention": 2}),
        ("esm", {"token_dropout": True, "embedding_norm": True}),
        ("esm", {"positions": "absolute"}),
        ("mpnet", {"num_hidden_layers": 1}),
    ],
)
@pytest.mark.parametrize("function", ["none", "soft_decay"])
def test_means_masked_tokens_and_distances_are_those_of_padded_rows(family, changes, function):
    svt = SVTConfig(function, layers=(0,), dropout=0.0)
    assert_same(tiny.classifier(family, svt, **changes), family, SHAPES["two groups"])


@pytest.mark.parametrize(
    ("function", "placement"),
    [
        case("none", "before_norm", fast=True),
        *(case("soft_decay", placement) for placement in POST_NORM_PLACEMENTS),
        *(
            case(function, "before_norm")
            for function in ("centered_soft_decay", "log_shift", "linear", "average", "contra_norm", "token_whitening")
        ),
    ],
)
def test_every_placement_and_function_gives_the_same(function, placement):
    svt = SVTConfig(function, placement=placement, dropout=0.0)
    assert_same(tiny.classifier("bert", svt), "bert", SHAPES["one group"])


@pytest.mark.parametrize("family", ["albert", "modernbert", "mpnet"])
@pytest.mark.parametrize("settings", [case({"scan_layers": True}), case({"remat": True})], ids=["scan", "remat"])
def test_a_loop_over_layers_and_recomputation_give_the_same(settings, family):
    changes = {"layer_types": [f"{each}_attention" for each in ("full", "full", "sliding", "sliding", "full")]}
    changes = {**changes, "num_hidden_layers": 5} if family == "modernbert" else {"num_hidden_layers": 4}
    plain = tiny.classifier(family, SVTConfig("soft_decay", dropout=0.0), **changes)
    expected = plain(tiny.IDS, tiny.MASK)
    for name, value in settings.items():
        setattr(plain.encoder, name, value)
    np.testing.assert_allclose(plain(tiny.IDS, tiny.MASK), expected, atol=1e-5)
    assert_same(plain, family, SHAPES["two groups"])


@pytest.mark.slow
def test_bfloat16_differs_by_its_own_rounding():
    model = tiny.classifier("bert", SVTConfig("soft_decay", dropout=0.0), dtype=jnp.bfloat16)
    assert_same(model, "bert", SHAPES["one group"], tolerance=0.1)


@functools.cache
def hidden_states(shape, rows=tuple(ROWS), seed=0, mask_padding=True):
    """Each layer's token matrices [E, L, D] in the order of `rows`, of neighbours drawn by `seed`."""
    ids = IDS.copy()
    ids[1:] = np.random.default_rng(seed).integers(3, 40, ids[1:].shape) if seed else ids[1:]
    tokens = Tokens.of_padded(ids, TYPES, LENGTHS, None, 0)
    (ids, types, layout), order = inputs(SHAPES[shape], np.array(rows), tokens)
    model = tiny.encoder("bert", SVTConfig("soft_decay", layers=(0, -1), mask_padding=mask_padding))
    out = model.encode(ids, types, layout, output_hidden_states=True)
    states = [np.asarray(layout.to_matrices(x))[order] for x in out.hidden_states]
    mask = np.asarray(layout.mask)[order]
    return [np.where(mask[..., None], x, 0.0) for x in states], np.asarray(layout.means(out.last_hidden_state))[order]


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_and_means_are_those_of_padded_rows(shape):
    model = tiny.encoder("bert", SVTConfig("soft_decay", layers=(0, -1)))
    ids, types, layout = padded_inputs("bert")
    out = model.encode(ids, types, layout, output_hidden_states=True)
    states, means = hidden_states(shape)
    for ours, theirs in zip(states, out.hidden_states, strict=True):
        np.testing.assert_allclose(ours, np.where(layout.mask[..., None], theirs, 0.0), atol=1e-5)
    np.testing.assert_allclose(means, layout.means(out.last_hidden_state), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "seed"), [((0,), 0), ((0, 3, 5), 0), (tuple(ROWS), 1)], ids=["alone", "fewer", "other neighbours"]
)
def test_an_example_does_not_depend_on_what_shares_its_row(rows, seed):
    whole, changed = hidden_states("one group"), hidden_states("one group", rows, seed)
    for ours, theirs in zip(changed[0], whole[0], strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)


def test_a_model_that_lets_padding_take_part_has_none_in_packed_rows():
    for ours, theirs in zip(hidden_states("one group", mask_padding=False), hidden_states("one group"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_to_matrices_and_back_is_the_identity_on_tokens_and_zero_elsewhere():
    (ids, _, layout), _ = inputs(SHAPES["two groups"])
    x = jnp.asarray(RNG.normal(size=(*ids.shape, 5)), jnp.float32)
    real = (np.asarray(layout.segment) > 0)[..., None]
    np.testing.assert_array_equal(layout.to_rows(layout.to_matrices(x)), np.where(real, x, 0.0))
    np.testing.assert_array_equal(layout.of_first(layout.asking_first(x)[0]), layout.first_tokens(x))
