"""Writes measures.md from the docstrings of svt_jax.measures: python docs/make_measures.py"""

import inspect
import re
from pathlib import Path

import svt_jax.spectral.measures as package
from svt_jax.evaluation.layer_measures import MEASURES, OF_ATTENTION, OF_EXAMPLES, OF_SAMPLE

HEAD = """# Measures

All are functions of `svt_jax.measures`, masked and jitted, with first derivatives. Tokens are the rows of X [L, D], of which n
are real; σ₁ ≥ σ₂ ≥ … are the singular values of those, r = min(n, D) of them; m is the tokens' mean. Each function's
docstring has an example worked by hand, its arguments, and what published programs do otherwise.

`svt_jax.probe` and `eval.py spectrum --measures` report the measures whose row says of what. Those marked * are in every reading
of a training run.

"""
TAIL = """
A reading decomposes each token matrix once; all measures of singular values share it. Measures that rest on pairs of tokens
(`self_similarity`, `two_nn`, `linear_cka`) take at most 1024 tokens of a batch, at even distances. `self_similarity` leaves
special tokens out. `lidar` takes texts as groups and their tokens as views, and `linear_cka` compares a layer with the one
before.

`python docs/make_measures.py` makes this page.
"""
# name: equation, range, what it says
MEANING = {
    "skewness": ("m₃ / m₂^{3/2} of σ", "real", "a few large values and many small ones are above 0"),
    "kurtosis": ("m₄ / m₂² − 3 of σ", "≥ −2", "how heavy the tail of the spectrum is"),
    "median_ratio": ("median σᵢ / σ₁", "[0, 1]", "near 0 one direction dominates"),
    "effective_rank": ("exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σσ", "[1, r]", "number of directions in use"),
    "explained_variance": ("Σ_{i≤k} σᵢ² / Σ σᵢ²", "[0, 1]", "share of the k largest directions"),
    "rank_me": ("exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σσ + 10⁻⁷", "[1, r]", "effective rank, as RankMe defines it"),
    "stable_rank": ("Σσᵢ² / σ₁²", "[1, r]", "rank that small values hardly move"),
    "participation_ratio": ("(Σσᵢ²)² / Σσᵢ⁴", "[1, r]", "number of equal directions that would spread as much"),
    "matrix_entropy": ("−Σ pᵢ ln pᵢ, pᵢ = σᵢ² / Σσ²", "[0, ln r]", "prompt entropy: 0 is one direction"),
    "alpha_req": ("−slope of ln σᵢ² over ln i", "≥ 0", "decay of the spectrum: the steeper, the fewer directions"),
    "token_uniformity": ("mean cos(xᵢ, xⱼ), i ≠ j", "[−1, 1]", "near 1 the tokens are alike"),
    "cls_uniformity": ("mean cos(x₀, xᵢ)", "[−1, 1]", "near 1 the first token is like all others"),
    "mean_token_share": ("n‖m‖² / ‖X‖²", "[0, 1]", "1: all tokens are equal"),
    "rank_one_residual": ("‖X − 1mᵀ‖₁,∞ / ‖X‖₁,∞", "≥ 0", "0: all tokens are equal"),
    "dirichlet_energy": ("½ Σ aᵢⱼ ‖xᵢ − xⱼ‖²", "≥ 0", "how far tokens are from those that they attend to"),
    "massive_activation": ("max‖x‖ / median‖x‖ of entries", "≥ 1", "entries that stand out by orders of magnitude"),
    "outlier_dimensions": ("number of var_d ≥ 5 mean var", "[0, D/5]", "dimensions that stand out"),
    "intra_sentence_similarity": ("mean cos(m, xᵢ)", "[−1, 1]", "tokens that share their sentence's direction"),
    "random_pair_similarity": (
        "mean cosine across sentences",
        "[−1, 1]",
        "the baseline of similarities; above 0: anisotropy",
    ),
    "self_similarity": ("mean cosine of a word's occurrences", "[−1, 1]", "1: context changes nothing"),
    "iso_score": ("(PR − 1) / (D − 1), PR = tr(C)² / ‖C‖²", "[0, 1]", "1: variance is equal in all directions"),
    "iso_score_star": ("the same of (1 − ζ)C + ζC₀", "[0, 1]", "IsoScore that is stable with few rows"),
    "uniformity": ("ln mean exp(−t‖uᵢ − uⱼ‖²)", "[−4t, 0]", "low: directions are spread evenly"),
    "rbf_distance": ("the same", "[−4t, 0]", "uniformity, by SoftDecay's paper"),
    "alignment": ("mean ‖uᵢ − vᵢ‖^p of pairs", "[0, 2^p]", "0: the members of each pair are equal"),
    "two_nn": ("slope of −ln(1 − F) over ln(r₂/r₁)", "≥ 0", "intrinsic dimension"),
    "local_structure": ("‖v − W v‖, W rebuilds u", "≥ 0", "0: neighbourhoods are kept"),
    "lidar": ("exp entropy of S_w^−½ S_b S_w^−½", "[1, N − 1]", "directions that tell groups apart"),
    "linear_cka": ("‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)", "[0, 1]", "1: equal up to rotation and scale"),
    "attention_entropy": ("mean −Σ a ln a of rows", "[0, ln n]", "0: each token looks at a single one"),
    "first_token_attention": ("mean a_q0", "[0, 1]", "near 1 the first token is a sink"),
    "attention_rank": ("number of σᵢ(A) > 0.01 σ₁(A)", "[1, n]", "1: all tokens receive the same mixture"),
}
PARTS = {"skewness", "kurtosis", "median_ratio", "effective_rank"}
"""Fields of `spectrum_summary`."""
NO_ROW = {"SpectrumSummary", "singular_values", "spectrum_summary", "spectrum_summary_of", "explained_variance_of", "ratios_to_largest"}  # fmt: skip
PAPER = "arXiv 2208.11790"


def source(name: str) -> str:
    """The papers that the docstring, or else its module's, names: arXiv numbers, or the journal."""
    if name in PARTS - {"effective_rank"}:
        return PAPER
    function = inspect.unwrap(getattr(package, "spectrum_summary" if name in PARTS else name))
    for text in (inspect.getdoc(function) or "", inspect.getmodule(function).__doc__ or ""):
        if found := list(dict.fromkeys(re.findall(r"arXiv\s+[\w./-]+\d|EUSIPCO 2007|NeurIPS 2022|bioRxiv \d+", text))):
            return ", ".join(" ".join(each.split()) for each in found)
    return PAPER


def reported(name: str) -> str:
    kinds = ((OF_EXAMPLES, "texts"), (OF_SAMPLE, "the sample"), (OF_ATTENTION, "heads and texts"))
    for table, what in kinds:
        if name in table or f"{name}_1" in table:
            return what + (" *" if name in MEASURES or f"{name}_1" in MEASURES else "")
    return ""


def page() -> str:
    """The whole page."""
    lines = ["| name | equation | range | says | probe: mean over | source |", "|---|---|---|---|---|---|"]
    for name, (equation, bounds, says) in MEANING.items():
        shown = f"spectrum_summary().{name}" if name in PARTS else name
        lines.append(f"| `{shown}` | {equation} | {bounds} | {says} | {reported(name)} | {source(name)} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    Path(__file__).with_name("measures.md").write_text(page(), encoding="utf-8")
