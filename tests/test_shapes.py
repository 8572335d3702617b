"""The shapes and dtypes that the docstrings of public functions state, checked at run time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, jaxtyped

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.heads import Classifier
from svt_jax.models.svt_config import SVTConfig

checked = jaxtyped(typechecker=beartype)
X = jax.random.normal(jax.random.key(0), (2, 3, 5, 7)) + 1.0  # no two dimensions are equal
MASK = jnp.arange(5) < jnp.array([[5, 2, 3], [4, 5, 1]])[..., None]
FUNCTIONS = [
    svt_jax.SoftDecay(), svt_jax.SoftDecay(centered=True), svt_jax.LogShift(), svt_jax.Linear(), svt_jax.Average(),
    svt_jax.Identity(), svt_jax.ContraNorm(), svt_jax.TokenWhitening(), svt_jax.TokenAllButTheTop(),
]  # fmt: skip


@checked
def svt(x: Float[Array, "*B L D"], function, mask: Bool[Array, "*B L"] | None) -> Float[Array, "*B L D"]:
    out = svt_jax.svt(x, function, mask=mask)
    assert out.dtype == x.dtype
    return out


@checked
def svt_and_failures(
    x: Float[Array, "*B L D"], function, mask: Bool[Array, "*B L"] | None
) -> tuple[Float[Array, "*B L D"], Bool[Array, "*B"]]:
    return svt_jax.svt_and_failures(x, function, mask=mask)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{type(f).__name__}{getattr(f, 'centered', '')}")
def test_a_transformation_keeps_shape_and_dtype(function):
    svt(X, function, MASK)
    svt_and_failures(X[0].astype(jnp.bfloat16), function, None)


@checked
def number(measure, x: Float[Array, "*B L D"], mask: Bool[Array, "*B L"] | None) -> Float32[Array, "*B"]:
    return measure(x, mask)


@checked
def values(x: Float[Array, "*B L D"], mask: Bool[Array, "*B L"]) -> Float32[Array, "*B R"]:
    found = svt_jax.measures.singular_values(x, mask)
    assert found.shape[-1] == min(x.shape[-2:])
    return found


def test_a_measure_is_one_number_for_each_matrix():
    m = svt_jax.measures
    for measure in (
        m.token_uniformity, m.cls_uniformity, lambda x, mask: m.explained_variance(x, 1, mask),
        lambda x, mask: m.rbf_distance(x, mask=mask), *(
            lambda x, mask, name=name: getattr(m.spectrum_summary(x, mask), name) for name in m.SpectrumSummary._fields
        ),
    ):  # fmt: skip
        number(measure, X, MASK)
        number(measure, X[0].astype(jnp.bfloat16), None)
    values(X, MASK)


@checked
def encode(
    encoder, input_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Float32[Array, "B L 12"], Float32[Array, "B 12"], tuple[Float32[Array, "B L 12"], ...], Int[Array, "B"]]:
    out = encoder(input_ids, mask, output_hidden_states=True)
    return out.last_hidden_state, out.pooled, out.hidden_states, out.svt_failures


@checked
def classify(classifier, input_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float32[Array, "B 3"]:
    return classifier(input_ids, mask)


def test_an_encoder_returns_states_of_every_token_and_a_classifier_logits():
    config = EncoderConfig.from_hf({
        "model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 11, "max_position_embeddings": 8,
    })  # fmt: skip
    encoder = Encoder(config, SVTConfig("soft_decay"), rngs=nnx.Rngs(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 5)))
    states = encode(encoder, ids, MASK[0])[2]
    assert len(states) == 3
    classify(Classifier(encoder, 3, rngs=nnx.Rngs(1)), ids, MASK[0])


def test_a_map_keeps_rows_and_whitening_their_number_of_directions():
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)

    @checked
    def transform(fitted, x: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray | Array, "N D"]:
        return fitted.transform(x)

    transform(svt_jax.SpectralMap(svt_jax.SoftDecay(centered=True)).fit(rows), rows)
    transform(svt_jax.AllButTheTop().fit(rows), rows)
    assert svt_jax.Whitening(dim=2).fit(rows).transform(rows).shape == (9, 2)
