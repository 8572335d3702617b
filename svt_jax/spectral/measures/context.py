"""Measures of words in context: how alike a word's vectors are, against what any two words are alike.

Reference: Ethayarajh, "How contextual are contextualized word representations?", EMNLP 2019, arXiv 1909.00512, section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from svt_jax.spectral.measures.arrays import checked, mean_row, number_of, over, pairs_of, unit_rows
from svt_jax.spectral.solvers import product

Array = jax.Array


@jax.jit
def intra_sentence_similarity(x: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine of the tokens with their mean, 1/n sum_i cos(m, x_i), in [-1, 1].

    The source subtracts `random_pair_similarity`, since in a narrow cone all vectors are alike.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(intra_sentence_similarity(jnp.array([[2.0, 0.0], [0.0, 2.0]]))), 4)  # m = (1, 1): cos 45 degrees
      0.7071
    """
    x, mask = checked(x, mask)
    common = unit_rows(mean_row(x, mask))
    return jnp.sum(unit_rows(x) * common, axis=(-2, -1)) / jnp.maximum(number_of(mask, x.dtype), 1.0)


@jax.jit
def random_pair_similarity(x: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine of two tokens of different sentences, in [-1, 1]: the baseline of the other two measures.

    Args:
      x: float[..., E, L, D], the tokens of E sentences.
      mask: bool[..., E, L].
    Returns:
      [...]; 0 with fewer than two sentences.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])  # cosines 1, 1, 0, 0
      >>> float(random_pair_similarity(x))
      0.5
    """
    x, mask = checked(x, mask)
    if x.ndim < 3:
        raise ValueError(f"random_pair_similarity needs sentences [..., E, L, D]; got {x.shape}. Stack them.")
    sums = jnp.sum(unit_rows(x), axis=-2)  # [..., E, D]
    n = number_of(mask, x.dtype)  # [..., E]
    between = jnp.sum(jnp.square(jnp.sum(sums, axis=-2)), axis=-1) - jnp.sum(jnp.square(sums), axis=(-2, -1))
    return over(between, jnp.square(jnp.sum(n, axis=-1)) - jnp.sum(jnp.square(n), axis=-1))


@jax.jit
def self_similarity(x: Array, words: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine of two occurrences of the same word, averaged over the words that occur twice or more, in [-1, 1].

        mean_w 1/(n_w (n_w - 1)) sum_{i != j, w_i = w_j = w} cos(x_i, x_j)

    1 means that context changes nothing. The source subtracts `random_pair_similarity`. 0 if no word occurs twice.

    Args:
      x: float[..., N, D], tokens of any number of sentences.
      words: int[..., N], the number of each token's word.
    Raises:
      ValueError: if `words` does not have x's shape without its last axis.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
      >>> float(self_similarity(x, jnp.array([7, 7, 8, 8, 9])))  # word 7: 0, word 8: 1, word 9 occurs once
      0.5
    """
    x, mask = checked(x, mask)
    words = jnp.asarray(words)
    if words.shape != mask.shape:
        raise ValueError(f"words must have x's shape without its last axis, {mask.shape}; got {words.shape}.")
    unit = unit_rows(x)
    same = pairs_of(mask) & (words[..., :, None] == words[..., None, :])
    others = jnp.sum(same, axis=-1).astype(x.dtype)  # n_w - 1
    # each word has the weight 1, whatever its number of occurrences
    by_token = over(jnp.sum(jnp.where(same, product(unit, unit.mT), 0.0), axis=-1), others * (others + 1.0))
    kinds = jnp.sum(jnp.where(others > 0, 1.0 / (others + 1.0), 0.0), axis=-1)
    return over(jnp.sum(by_token, axis=-1), kinds)
