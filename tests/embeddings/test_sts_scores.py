"""The two protocols against a float64 reference that uses singular value decompositions, as the published code does."""

import numpy as np
import pytest
from scipy import stats

import svt_jax
from svt_jax.embeddings.sts import distinct_sentences, published_mean
from svt_jax.embeddings.sts_files import PairFile, STSTask
from svt_jax.embeddings.sts_maps import PostProcessing, Vectors, fit_honest, fit_published, unscored
from svt_jax.embeddings.sts_scores import analyse, score_tasks
from svt_jax.errors import NonFiniteError

D = 8
SENTENCES = [f"s{n}" for n in range(60)]
ROWS = (np.random.default_rng(0).normal(size=(60, D)) * np.geomspace(3.0, 0.5, D) + 0.5).astype(np.float32)
VECTORS = Vectors(SENTENCES, ROWS)


def make_file(name, pairs, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 40, (2, pairs))
    second[:3] = first[:3]  # pairs of equal sentences
    scores = rng.integers(0, 6, pairs).astype(float)
    return PairFile(name, [SENTENCES[n] for n in first], [SENTENCES[n] for n in second], scores)


TASKS = [
    STSTask("a", (make_file("a1", 30, 1), make_file("a2", 18, 2), make_file("a3", 25, 3))),
    STSTask("b", (make_file("b1", 30, 4),)),
]


def soft_decay(x, alpha, centered):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    f = lambda v: -np.log(1 - alpha * (v + alpha)) / alpha
    new = f(s) - (f(0.0) if centered else 0.0)
    return (u * new * s.max() / new.max()) @ vt


def whiten(x):
    centered = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centered.T @ centered)
    return centered @ (u / np.sqrt(s))


def remove_top(x):
    centered = x - x.mean(axis=0)
    top = np.linalg.svd(centered, full_matrices=False)[2][:1]
    return centered - centered @ top.T @ top


def reference_cosines(file, others, post):
    """The pool is the file's pairs, then the others'; afterwards the file's own pairs come first again."""
    pool = [file, *others]
    x, y = (
        ROWS[VECTORS.index([s for f in pool for s in getattr(f, side)])].astype(np.float64)
        for side in ("first", "second")
    )
    if post == "none":
        pass
    elif post.endswith("soft_decay"):
        x, y = (soft_decay(side, -0.6, post.startswith("centered")) for side in (x, y))
    else:
        x, y = np.split((whiten if post == "whitening" else remove_top)(np.concatenate([x, y])), 2)
    x, y = x[: len(file)], y[: len(file)]
    return np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


@pytest.mark.parametrize("post", ["none", "soft_decay", "centered_soft_decay", "whitening", "all_but_the_top"])
def test_the_published_protocol_equals_a_reference_that_pools_file_by_file(post):
    table = score_tasks(TASKS, VECTORS, fit_published(TASKS, VECTORS, PostProcessing(post)))
    for task in TASKS:
        cosines = []
        for file in task.files:
            others = [other for other in task.files if other is not file]
            cosines.append(reference_cosines(file, others, post).round(6))  # pairs of equal sentences tie
            expected = 100 * stats.spearmanr(cosines[-1], file.scores).statistic
            np.testing.assert_allclose(table["files"][file.name], expected, atol=1e-9)
        np.testing.assert_allclose(
            table["tasks"][task.name]["mean"], np.mean([table["files"][f.name] for f in task.files]), rtol=1e-12
        )
        everything = stats.spearmanr(np.concatenate(cosines), np.concatenate([f.scores for f in task.files])).statistic
        np.testing.assert_allclose(table["tasks"][task.name]["all"], 100 * everything, atol=1e-9)
    for kind in ("mean", "all"):
        np.testing.assert_allclose(
            table["average"][kind], np.mean([t[kind] for t in table["tasks"].values()]), rtol=1e-12
        )
    assert abs(table["tasks"]["a"]["mean"] - table["tasks"]["a"]["all"]) > 0.01


def test_the_honest_protocol_fits_one_map_on_the_corpus_alone():
    corpus = SENTENCES[40:]
    (left, right), second = fit_honest(TASKS, VECTORS, PostProcessing("whitening"), corpus)
    assert left is right
    assert second == (left, right)
    expected = svt_jax.Whitening().fit(ROWS[40:])
    np.testing.assert_array_equal(left.matrix, expected.matrix)
    assert left.count == 20


def test_scored_sentences_are_left_out_of_the_corpus():
    scored = distinct_sentences(TASKS)
    assert unscored(["new", *scored[:3]], scored) == ["new"]
    with pytest.raises(ValueError, match="all 3 sentences to fit on are scored ones. Choose another corpus"):
        unscored(scored[:3], scored)


def test_whitening_needs_as_many_rows_as_dimensions():
    with pytest.raises(
        ValueError, match=r"whitening cannot be fitted on the corpus: .*there are 8 and 5. Fit on more rows"
    ):
        fit_honest(TASKS, VECTORS, PostProcessing("whitening"), SENTENCES[40:45])
    (maps, _) = fit_honest(TASKS, VECTORS, PostProcessing("whitening", dim=3), SENTENCES[40:45])
    assert maps[0].matrix.shape == (D, 3)
    small = [STSTask("a", (make_file("a1", 3, 1),))]
    with pytest.raises(ValueError, match="whitening cannot be fitted on a: .*there are 8 and 6"):
        fit_published(small, VECTORS, PostProcessing("whitening"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "pca"}, "post is 'pca'; allowed are none, soft_decay"),
        ({"name": "soft_decay", "alpha": 0.3}, "alpha"),
        ({"name": "whitening", "dim": 0}, "dim must be at least 1"),
        ({"name": "soft_decay", "dim": 3}, "only whitening keeps chosen directions"),
    ],
)
def test_posts_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PostProcessing(**arguments)


def test_equal_sentences_have_cosine_one_where_both_sides_have_the_same_map():
    file = PairFile("x", SENTENCES[:4], [*SENTENCES[:3], SENTENCES[9]], np.array([1.0, 2.0, 3.0, 4.0]))
    for post in ("none", "whitening", "all_but_the_top"):
        task = STSTask("a", (file, TASKS[1].files[0]))
        table = score_tasks([task], VECTORS, fit_published([task], VECTORS, PostProcessing(post)))
        # three ties at 1 and the last below: ranks 3, 3, 3, 1 against 1, 2, 3, 4
        np.testing.assert_allclose(table["files"]["x"], 100 * -np.sqrt(0.6), rtol=1e-12)


def test_the_published_mean_divides_by_a_hundredth_more():
    rows, lengths = np.array([[3.0, 6.0]], np.float32), np.array([4])
    np.testing.assert_allclose(published_mean(rows, lengths), [[12 / 4.01, 24 / 4.01]], rtol=1e-6)


def test_analysis_measures_before_and_after():
    maps = fit_published(TASKS, VECTORS, PostProcessing("whitening"))
    table = analyse(TASKS, VECTORS, maps)
    index = [np.unique(VECTORS.index([s for f in task.files for s in f.first])) for task in TASKS]
    assert table["sentences"] == sum(map(len, index))
    for part, transform in (("before", lambda m, x: x), ("after", lambda m, x: m.transform(x))):
        mapped = [np.asarray(transform(m[0], ROWS[i])) for i, m in zip(index, maps, strict=True)]
        s = [np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2 for x in mapped]
        expected = np.mean([v[:3].sum() / v.sum() for v in s])
        np.testing.assert_allclose(table[part]["explained_variance_3"], expected, rtol=1e-5)
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in mapped]
        uniformity = np.mean([((u @ u.T).sum() - len(u)) / len(u) / (len(u) - 1) for u in unit])
        np.testing.assert_allclose(table[part]["token_uniformity"], uniformity, atol=1e-5)
        assert np.isfinite(table[part]["rbf_distance"])
    assert table["after"]["explained_variance_1"] < table["before"]["explained_variance_1"]
    assert table["after"]["local_structure"] > table["before"]["local_structure"]


def test_a_task_of_few_sentences_lacks_a_measure_and_the_others_have_it():
    tasks = [STSTask("few", (PairFile("few", SENTENCES[:2], SENTENCES[2:4], np.zeros(2)),)), TASKS[1]]
    for order in (tasks, tasks[::-1]):
        table = analyse(order, VECTORS, [(None, None)] * 2)
        whole = analyse(TASKS[1:], VECTORS, [(None, None)])
        assert table["before"]["explained_variance_3"] == whole["before"]["explained_variance_3"]
        assert table["before"]["explained_variance_1"] != whole["before"]["explained_variance_1"]


def test_vectors_that_are_not_finite_stop_the_scoring():
    rows = ROWS.copy()
    rows[TASKS[0].files[0].first.index(TASKS[0].files[0].first[0])] = np.nan
    with pytest.raises(NonFiniteError, match="are not finite"):
        score_tasks(TASKS, Vectors(SENTENCES, np.full_like(rows, np.nan)), [(None, None)] * 2)
