r"""The probe: spectra and token uniformity of every layer, on a fixed sample of a split.

For each example's real tokens the probe measures the following states, then averages over the sample:

  output      the output of the embeddings and of each layer
  svt_input   the input of a layer's SVT, in layers that have one
  svt_output  its output

A reading holds plain values for JSON:

  {"examples": 64, "alpha": {"1": -0.2}, "svt": {"1": {"alpha": -0.2}},
   "states": [{"layer": null, "state": "output", "skewness": ..., "histogram": [...]}, ...]}

"svt" has every parameter of each transformation by layer and name. Layer null is the embeddings' output. `histogram`
divides [0, 1] into `BINS` equal parts; each entry is the share of the singular values with sigma_i / sigma_1 in that
part. Each example has the same weight, whatever its length.

References: arXiv 2208.11790, section 3 and figure 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import choose_even_shape
from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.glue import State
from svt_jax.host import compiler_options
from svt_jax.mesh import batch_sharding, replicated
from svt_jax.models.encoder import Encoder
from svt_jax.models.heads import Classifier
from svt_jax.models.packed import read_batch
from svt_jax.models.slot import plain_parameters
from svt_jax.run.task_model import TaskModel
from svt_jax.spectral import measures

Array = jax.Array
Reading = dict[str, Any]

EXAMPLES = 64
"""Examples in the sample: its means are within a few per cent of the split's, and it is cheap."""
BINS = 100
MEASURES = (
    "skewness",
    "median_ratio",
    "token_uniformity",
    "cls_uniformity",
    "explained_variance_1",
    "explained_variance_3",
    "effective_rank",
)


class Probe:
    """Measures a model whose parameters change; two programs, each compiled once.

    Args:
      model: an encoder or a classifier.
      tokens: the split's token arrays; the sample is `EXAMPLES` examples at even distances, or all if there are fewer.
    """

    def __init__(self, model: TaskModel, tokens: Tokens):
        graphdef, mesh = model.graphdef, model.mesh
        sample = np.unique(np.linspace(0, len(tokens) - 1, min(EXAMPLES, len(tokens))).astype(int))
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-len(sample) // shards) * shards
        shape, (chosen,) = choose_even_shape(tokens.lengths[sample], size, groups=shards)
        self._batch = pack(tokens, sample[chosen], shape)
        self._examples, self._mesh = len(sample), mesh
        batch = batch_sharding(mesh)

        def encoder_of(state: tuple[nnx.State, nnx.State]) -> Encoder:
            model = nnx.merge(graphdef, *state)
            return model.encoder if isinstance(model, Classifier) else model

        def forward(state: tuple[nnx.State, nnx.State], batch: dict[str, Array]) -> dict[str, Any]:
            ids, types, layout = read_batch(batch, **shape.static)
            out = encoder_of(state).encode(ids, types, layout, output_hidden_states=True, output_svt_states=True)
            assert out.hidden_states is not None
            states = [layout.to_matrices(x) for x in out.hidden_states]
            return {"output": states, "svt": out.svt_states, "mask": layout.mask}

        self._forward = jax.jit(
            forward,
            in_shardings=(None, batch),
            out_shardings=batch,
            compiler_options=compiler_options("inference"),
        )
        self._measure = jax.jit(measure, in_shardings=batch, out_shardings=replicated(mesh))
        self._encoder_of = encoder_of

    def read(self, holder: State) -> Reading:
        """One pass over the sample with the holder's parameters."""
        state = holder.params, holder.constants
        with jax.set_mesh(self._mesh):
            batch = {name: jax.device_put(values, batch_sharding(self._mesh)) for name, values in self._batch.items()}
            found = self._forward(state, batch)
            mask, weights = found["mask"], batch["weights"]
            states: list[tuple[int | None, str, Array]] = [
                (n - 1 if n else None, "output", x) for n, x in enumerate(found["output"])
            ]
            for n, (before, after) in found["svt"].items():
                states += [(n, "svt_input", before), (n, "svt_output", after)]
            # dispatch all before reading the first
            measured = [self._measure(x, mask, weights) for _, _, x in states]
            encoder = self._encoder_of(state)
        return {
            "examples": self._examples,
            "alpha": {str(n): float(alpha) for n, alpha in encoder.alphas.items()},
            "svt": plain_parameters(encoder.svt_parameters),
            "states": [
                {"layer": layer, "state": kind, **_plain(jax.device_get(values))}
                for (layer, kind, _), values in zip(states, measured, strict=True)
            ],
        }


def measure(x: Array, mask: Array, weights: Array) -> dict[str, Array]:
    """Weighted means of the examples' measures, and the mean histogram.

    Args:
      x: float[B, L, D].
      mask: [B, L], true or 1 for real tokens.
      weights: float[B], 0 for rows that only fill up the batch.
    Returns:
      scalars by the names of `MEASURES`, and "histogram" [BINS], which sums to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[4.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])  # the last token is masked out: values 4 and 2
      >>> found = measure(x, jnp.array([[1, 1, 0]]), jnp.ones(1))
      >>> [round(float(found[name]), 3) for name in ("median_ratio", "explained_variance_1", "token_uniformity")]
      [0.75, 0.8, 0.0]
      >>> [round(float(found["histogram"][n]), 2) for n in (50, 99)]
      [0.5, 0.5]
    """
    x, mask = x.astype(jnp.promote_types(x.dtype, jnp.float32)), mask.astype(bool)
    sigma = measures.singular_values(x, mask)  # [B, R]
    count = jnp.minimum(jnp.sum(mask, axis=-1), x.shape[-1])
    summary = measures.spectrum_summary_of(sigma, count)
    ratios, real = measures.ratios_to_largest(sigma, count)
    bins = jnp.minimum((ratios * BINS).astype(jnp.int32), BINS - 1)  # the ratio 1 belongs to the last bin
    share = jnp.where(real, 1.0, 0.0) / jnp.maximum(count, 1).astype(x.dtype)[:, None]
    weights = weights / jnp.sum(weights)
    by_example = {
        "skewness": summary.skewness,
        "median_ratio": summary.median_ratio,
        "token_uniformity": measures.token_uniformity(x, mask),
        "cls_uniformity": measures.cls_uniformity(x, mask),
        "explained_variance_1": measures.explained_variance_of(sigma, 1),
        "explained_variance_3": measures.explained_variance_of(sigma, min(3, sigma.shape[-1])),
        "effective_rank": summary.effective_rank,
    }
    means = {name: jnp.sum(values * weights) for name, values in by_example.items()}
    return {**means, "histogram": jnp.zeros(BINS, x.dtype).at[bins].add(share * weights[:, None])}


def _plain(values: dict[str, np.ndarray]) -> dict[str, Any]:
    histogram = values.pop("histogram")
    means = {name: float(values[name]) for name in MEASURES}
    return {**means, "histogram": [round(float(share), 6) for share in histogram]}
