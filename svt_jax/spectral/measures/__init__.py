"""Measures of token uniformity and of the spectrum, of one matrix or of a batch of them; masked and jitted.

x is float[..., L, D]: the tokens of one input, or a set of sentence embeddings. `mask` is bool[..., L], true for real
rows. Masked rows have no influence, whatever they hold. Results are float32 (float64 for float64 input), one for each
matrix. A matrix without rows or columns counts as one whose rows are all masked: each measure of it is 0.

All have first derivatives, forward and reverse; counts have the derivative 0. They are also finite at zero rows and at
equal or zero singular values, where the measure itself may have none.

| room | measures |
|---|---|
| `spectrum`, `ranks` | functions of the singular values: their shape, ranks, entropies |
| `tokens` | cosines of tokens, the tokens' mean, entries that stand out |
| `context` | words in context, against a baseline of random pairs |
| `isotropy` | IsoScore; alignment and uniformity |
| `neighbours` | intrinsic dimension; what a transformation keeps of neighbourhoods |
| `comparison` | two representations (CKA), groups of rows (LiDAR) |
| `attention` | attention maps |

The programs published with the method, and those of other sources, define several measures differently. Ours are the
papers' definitions; each docstring says how the others differ. docs/measures.md lists all of them.

References:
  Yan, Gui, Li, He, UAI 2022, arXiv 2208.11790, section 3 (token uniformity, skewness) and section 5 (RBF distance,
  explained variance, local structure). Explained variance is there after IsoBN: Zhou et al., arXiv 2005.02178.
"""

from svt_jax.spectral.measures.attention import attention_entropy, attention_rank, first_token_attention
from svt_jax.spectral.measures.comparison import lidar, linear_cka
from svt_jax.spectral.measures.context import intra_sentence_similarity, random_pair_similarity, self_similarity
from svt_jax.spectral.measures.isotropy import alignment, iso_score, iso_score_star, rbf_distance, uniformity
from svt_jax.spectral.measures.neighbours import local_structure, two_nn
from svt_jax.spectral.measures.ranks import alpha_req, matrix_entropy, participation_ratio, rank_me, stable_rank
from svt_jax.spectral.measures.spectrum import (
    SpectrumSummary,
    explained_variance,
    explained_variance_of,
    ratios_to_largest,
    singular_values,
    spectrum_summary,
    spectrum_summary_of,
)
from svt_jax.spectral.measures.tokens import (
    cls_uniformity,
    dirichlet_energy,
    massive_activation,
    mean_token_share,
    outlier_dimensions,
    rank_one_residual,
    token_uniformity,
)

__all__ = [
    "SpectrumSummary",
    "alignment",
    "alpha_req",
    "attention_entropy",
    "attention_rank",
    "cls_uniformity",
    "dirichlet_energy",
    "explained_variance",
    "explained_variance_of",
    "first_token_attention",
    "intra_sentence_similarity",
    "iso_score",
    "iso_score_star",
    "lidar",
    "linear_cka",
    "local_structure",
    "massive_activation",
    "matrix_entropy",
    "mean_token_share",
    "outlier_dimensions",
    "participation_ratio",
    "random_pair_similarity",
    "rank_me",
    "rank_one_residual",
    "ratios_to_largest",
    "rbf_distance",
    "self_similarity",
    "singular_values",
    "spectrum_summary",
    "spectrum_summary_of",
    "stable_rank",
    "token_uniformity",
    "two_nn",
    "uniformity",
]
