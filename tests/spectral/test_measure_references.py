"""Measures equal float64 references in NumPy, of each matrix alone: masked rows, and other matrices, have no influence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svt_jax import measures

RNG = np.random.default_rng(0)
LENGTHS = (11, 7, 3)
MASK = np.arange(11) < np.array(LENGTHS)[:, None]
X = (RNG.normal(size=(3, 11, 8)) + 0.7).astype(np.float32)
X[0, 2, 5] = 40.0  # stands out
Y = (X @ RNG.normal(size=(8, 4)) + 0.5 * RNG.normal(size=(3, 11, 4))).astype(np.float32)
WORDS = np.array(
    [[1, 2, 1, 3, 2, 1, 4, 4, 9, 9, 9], [1, 1, 2, 2, 2, 5, 6, 9, 9, 9, 9], [1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9]]
)


def maps_of(scores):
    """Attention maps of the first tokens, as many as there are scores."""
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


SCORES = 2.0 * RNG.normal(size=(3, 2, 11, 11))
MAPS = np.full((3, 2, 11, 11), np.nan, np.float32)
for n, length in enumerate(LENGTHS):
    MAPS[n, :, :length, :length] = maps_of(SCORES[n, :, :length, :length])


def svd(x):
    return np.linalg.svd(x, compute_uv=False)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def centre(x):
    return x - x.mean(0)


def entropy(p):
    return -(p[p > 0] * np.log(p[p > 0])).sum()


def covariance_ratio(c):
    return ((np.trace(c) ** 2 / (c**2).sum()) - 1) / (len(c) - 1)


def self_similarity(x, words):
    u, found = unit(x), []
    for word in set(words):
        same = u[words == word]
        if len(same) > 1:
            found.append((same @ same.T)[~np.eye(len(same), dtype=bool)].mean())
    return np.mean(found) if found else 0.0


def alpha(x):
    values = svd(x)
    rank = np.arange(3, len(values) + 1)
    return -np.polyfit(np.log(rank), 2 * np.log(values[2:]), 1, w=rank**-0.5)[0] if len(rank) > 1 else 0.0


def two_nn(x):
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.diag(np.full(len(x), np.inf))
    near = np.sort(distances, axis=1)
    ratio = np.sort(np.log(near[:, 1] / near[:, 0]))
    kept = int(0.9 * len(x))
    up = -np.log(1 - np.arange(1, kept + 1) / len(x))
    return (up * ratio[:kept]).sum() / (ratio[:kept] ** 2).sum()


def dong(x):
    norm = lambda a: np.sqrt(np.abs(a).sum(0).max() * np.abs(a).sum(1).max())
    return norm(centre(x)) / norm(x)


def dirichlet(x, a):
    return 0.5 * sum(a[i, j] * ((x[i] - x[j]) ** 2).sum() for i in range(len(x)) for j in range(len(x)))


REFERENCES = {
    "stable_rank": lambda x: (svd(x) ** 2).sum() / svd(x)[0] ** 2,
    "participation_ratio": lambda x: (svd(x) ** 2).sum() ** 2 / (svd(x) ** 4).sum(),
    "matrix_entropy": lambda x: entropy(svd(x) ** 2 / (svd(x) ** 2).sum()),
    "rank_me": lambda x: np.exp(entropy(svd(x) / svd(x).sum() + 1e-7)),
    "alpha_req": alpha,
    "mean_token_share": lambda x: len(x) * (x.mean(0) ** 2).sum() / (x**2).sum(),
    "rank_one_residual": dong,
    "dirichlet_energy": lambda x: dirichlet(x, np.full((len(x), len(x)), 1 / len(x))),
    "massive_activation": lambda x: np.abs(x).max() / np.median(np.abs(x)),
    "outlier_dimensions": lambda x: (x.var(0) >= 5 * x.var(0).mean()).sum(),
    "intra_sentence_similarity": lambda x: (unit(x) @ unit(x.mean(0))).mean(),
    "iso_score": lambda x: covariance_ratio(np.cov(x.T)),
    "iso_score_star": lambda x: covariance_ratio(np.cov(x.T)),
    "uniformity": lambda x: np.log(np.exp(4 * (unit(x) @ unit(x).T)[np.triu_indices(len(x), 1)] - 4).mean()),
    "two_nn": two_nn,
}
WITH_MORE = {
    "self_similarity": (WORDS, self_similarity),
    "alignment": (X[:, ::-1, :].copy(), lambda x, y: ((unit(x) - unit(y)) ** 2).sum(1).mean()),
    "linear_cka": (
        Y,
        lambda x, y: (
            np.linalg.norm(centre(y).T @ centre(x)) ** 2
            / np.linalg.norm(centre(x).T @ centre(x))
            / np.linalg.norm(centre(y).T @ centre(y))
        ),
    ),
    "dirichlet_energy": (MAPS[:, 0], lambda x, a: dirichlet(x, a[:, : len(a)])),
}
ATTENTION = {
    "attention_entropy": lambda a: np.mean([entropy(row) for row in a]),
    "first_token_attention": lambda a: a[:, 0].mean(),
    "attention_rank": lambda a: (svd(a) > 0.01 * svd(a)[0]).sum(),
}
GARBAGE = jnp.asarray(np.where(MASK[..., None], X, np.nan))
REAL = [(n, slice(length)) for n, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def measured():
    """Every measure of the masked batch, in one program."""

    def all_of(x, mask, more, maps):
        call = lambda name, given: getattr(measures, name)(
            x,
            mask=mask,
            **({"attention": given} if name == "dirichlet_energy" else {"words" if "self" in name else "y": given}),
        )
        plain = {name: getattr(measures, name)(x, mask=mask) for name in REFERENCES}
        others = {f"{name}, more": call(name, given) for name, given in more.items()}
        heads = {name: getattr(measures, name)(maps, mask) for name in ATTENTION}
        return plain | others | heads

    more = {name: jnp.asarray(given) for name, (given, _) in WITH_MORE.items()}
    return jax.device_get(jax.jit(all_of)(GARBAGE, jnp.asarray(MASK), more, jnp.asarray(MAPS)))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_measure_of_real_rows_equals_numpy(measured, name):
    theirs = [REFERENCES[name](X[place].astype(np.float64)) for place in REAL]
    np.testing.assert_allclose(measured[name], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_MORE)
def test_a_measure_of_two_arrays_equals_numpy(measured, name):
    given, reference = WITH_MORE[name]
    if name == "dirichlet_energy":
        given = [given[n, :length, :length] for n, length in enumerate(LENGTHS)]
        theirs = [
            reference(X[place].astype(np.float64), a.astype(np.float64)) for place, a in zip(REAL, given, strict=True)
        ]
    else:
        theirs = [reference(X[place].astype(np.float64), given[place]) for place in REAL]
    np.testing.assert_allclose(measured[f"{name}, more"], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_measure_of_attention_is_one_number_for_each_head_of_the_real_tokens(measured, name):
    theirs = [
        [ATTENTION[name](head[:length, :length].astype(np.float64)) for head in maps]
        for maps, length in zip(MAPS, LENGTHS, strict=True)
    ]
    np.testing.assert_allclose(measured[name], theirs, rtol=1e-5, atol=1e-6)


def test_attention_is_measured_under_vmap_and_grad_and_in_bfloat16():
    maps, mask = np.nan_to_num(MAPS[:2, :, :7, :7]), MASK[:2, :7]
    for measure in (measures.attention_entropy, measures.first_token_attention):
        np.testing.assert_allclose(jax.vmap(measure)(maps, mask), measure(maps, mask), rtol=1e-5)
        assert measure(jnp.asarray(maps, jnp.bfloat16), mask).dtype == jnp.float32
    slope = jax.grad(lambda a: jnp.sum(measures.attention_entropy(a, mask)))(maps)
    expected = np.where(maps > 0, -np.log(np.maximum(maps, 1e-30)) - 1, 0) / mask.sum(1)[:, None, None, None]
    np.testing.assert_allclose(
        slope, expected * (mask[:, None, :, None] & mask[:, None, None, :]), rtol=1e-4, atol=1e-6
    )


def test_random_pairs_are_of_different_sentences_and_lidar_tells_sentences_apart():
    real = [X[place].astype(np.float64) for place in REAL]
    between = [(unit(a) @ unit(b).T).ravel() for n, a in enumerate(real) for m, b in enumerate(real) if n != m]
    random = measures.random_pair_similarity(GARBAGE, MASK)
    np.testing.assert_allclose(random, np.concatenate(between).mean(), rtol=1e-5)
    means = np.array([a.mean(0) for a in real])
    within = np.concatenate([centre(a) for a in real])
    scatter = within.T @ within / (len(within) - 3) + 1e-4 * np.eye(8)
    shares = np.linalg.eigvals(np.linalg.solve(scatter, centre(means).T @ centre(means))).real
    shares = np.where(shares > 1e-9, shares, 0.0) / shares.sum()
    np.testing.assert_allclose(measures.lidar(GARBAGE, MASK), np.exp(entropy(shares)), rtol=1e-5)


def test_cka_is_the_same_by_rows_and_by_columns():
    x, y = (np.tile(a[0], (2, 1)) for a in (X, Y))  # 22 rows, more than columns
    noise = RNG.normal(size=(22, 1)).astype(np.float32)
    x, y = x + noise, y - noise
    wide = [np.concatenate([a, np.zeros((22, 30), np.float32)], axis=1) for a in (x, y)]
    np.testing.assert_allclose(measures.linear_cka(x, y), measures.linear_cka(*wide), rtol=1e-5)


DEGENERATE = {
    "zero": np.zeros((4, 3)), "equal": np.ones((4, 3)), "one row": np.ones((1, 3)), "large": np.full((4, 3), 1e17),
    "small": np.full((4, 3), 1e-17), "one column": np.arange(4.0)[:, None],
}  # fmt: skip


@pytest.mark.parametrize("derivative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_degenerate_input_has_finite_measures_and_gradients(derivative):
    def all_of(x, mask):
        plain = [getattr(measures, name)(x, mask=mask) for name in REFERENCES]
        more = [
            measures.self_similarity(x, jnp.zeros(x.shape[:-1], int), mask), measures.alignment(x, x[::-1], mask=mask),
            measures.linear_cka(x, x, mask), measures.random_pair_similarity(x[None], mask[None]),
            measures.lidar(x[None], mask[None]),
        ]  # fmt: skip
        return jnp.stack(plain + more)

    slope = jax.grad(lambda x, mask: jnp.sum(all_of(x, mask)))
    compiled = jax.jit(slope if derivative else all_of)  # one program: each case is in the corner of a larger array
    for name, x in DEGENERATE.items():
        padded = np.zeros((4, 3), np.float32)
        padded[: x.shape[0], : x.shape[1]] = x
        for real in (x.shape[0], 0):
            found = compiled(padded, np.arange(4) < real)
            assert np.isfinite(found).all(), (name, real, found)
            if real == 0:
                np.testing.assert_array_equal(found, np.zeros_like(found))


def test_the_median_is_numpys_for_even_and_odd_numbers_and_repeated_values():
    for values in (
        [3.0],
        [1.0, 4.0],
        [2.0, 2.0, 5.0],
        [1.0, 2.0, 2.0, 9.0],
        [0.0, 0.0, 1.0, 4.0],
        [0.0, 0.0, 0.0, 4.0],
    ):
        x = np.array(values, np.float32)[:, None]
        median = np.median(values)
        theirs = max(values) / median if median else 0.0
        np.testing.assert_allclose(measures.massive_activation(x), theirs, rtol=1e-6)


def test_wrong_arguments_are_errors_that_say_what_is_allowed():
    x = jnp.ones((4, 3))
    for call, message in (
        (lambda: measures.matrix_entropy(x, order=0.0), "order is 0.0; allowed are numbers above 0"),
        (lambda: measures.alpha_req(x, first=5, last=5), "allowed is 1 <= first < last"),
        (lambda: measures.two_nn(x, discard=1.0), "allowed are shares above 0 and below 1"),
        (lambda: measures.alignment(x, x[:2]), "one shape|mask must have"),
        (lambda: measures.linear_cka(x, x[:2]), "the same rows|mask must have"),
        (lambda: measures.self_similarity(x, jnp.ones(3, int)), "words must have x's shape"),
        (lambda: measures.iso_score_star(x, jnp.eye(2)), r"covariance \[D, D\]"),
        (lambda: measures.random_pair_similarity(x), r"needs sentences \[..., E, L, D\]"),
        (lambda: measures.lidar(x), r"groups of rows \[..., N, q, D\]"),
        (lambda: measures.dirichlet_energy(x, attention=x), r"attention must be \[..., L, L\]"),
        (lambda: measures.attention_entropy(x), r"\[..., N, L, L\]"),
        (
            lambda: measures.attention_rank(jnp.ones((2, 4, 4)), jnp.ones((2, 4), bool)),
            "which of the L tokens are real",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
