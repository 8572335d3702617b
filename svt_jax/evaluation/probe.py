r"""The probe: spectra and token uniformity of every layer, on a fixed sample of a split.

For each example's real tokens the probe measures the following states (`layer_measures`), then averages over the sample:

  output      the output of the embeddings and of each layer
  svt_input   the input of a layer's SVT, in layers that have one
  svt_output  its output

A reading holds plain values for JSON:

  {"examples": 64, "alpha": {"1": -0.2}, "svt": {"1": {"alpha": -0.2}},
   "states": [{"layer": null, "state": "output", "skewness": ..., "std": {"skewness": ..., ...}, "histogram": [...]}, ...]}

"svt" has every parameter of each transformation by layer and name. Layer null is the embeddings' output. "std" is the
standard deviation over the examples; for a measure of the sample, over its batches. `histogram` divides [0, 1] into
`BINS` equal parts; each entry is the share of the singular values with sigma_i / sigma_1 in that part. Each example has
the same weight, whatever its length.

References: arXiv 2208.11790, section 3 and figure 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.data.batching import Batch
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import choose_even_shape
from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.glue import State
from svt_jax.evaluation.layer_measures import MEASURES as MEASURES
from svt_jax.evaluation.layer_measures import OF_ATTENTION, LayerState, measure
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
Place = tuple[int | None, str]
Measured = tuple[dict[str, Any], Any]

EXAMPLES = 64
"""Examples in the sample: its means are within a few per cent of the split's, and it is cheap."""
BINS = 100


class Probe:
    """Measures a model whose parameters change; each program is compiled once.

    Args:
      model: an encoder or a classifier.
      tokens: the split's token arrays; the sample is `EXAMPLES` examples at even distances, or all if there are fewer.
      names: the measures, of `layer_measures.ALL`.
      whole: takes all examples as the sample, in batches of `EXAMPLES` at most. Measures of a set are then means over
        the batches.
    """

    def __init__(self, model: TaskModel, tokens: Tokens, names: Collection[str] = MEASURES, *, whole: bool = False):
        graphdef, mesh = model.graphdef, model.mesh
        most = len(tokens) if whole else min(EXAMPLES, len(tokens))
        sample = np.unique(np.linspace(0, len(tokens) - 1, most).astype(int))
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-min(EXAMPLES, len(sample)) // shards) * shards
        shape, batches = choose_even_shape(tokens.lengths[sample], size, groups=shards)
        self._batches = [pack(tokens, sample[chosen], shape) for chosen in batches]
        self._examples, self._mesh, self._names = len(sample), mesh, tuple(names)
        batch = batch_sharding(mesh)
        maps = any(name in OF_ATTENTION for name in names)
        pairs, words = "linear_cka" in names, "self_similarity" in names
        special = np.asarray(getattr(model.tokenizer, "all_special_ids", []), np.int32)

        def encoder_of(state: tuple[nnx.State, nnx.State]) -> Encoder:
            model = nnx.merge(graphdef, *state)
            return model.encoder if isinstance(model, Classifier) else model

        def forward(state: tuple[nnx.State, nnx.State], batch: dict[str, Array]) -> dict[str, Any]:
            ids, types, layout = read_batch(batch, **shape.static)
            out = encoder_of(state).encode(
                ids, types, layout, output_hidden_states=True, output_svt_states=True, output_attentions=maps
            )
            assert out.hidden_states is not None
            found: dict[str, Any] = {
                "output": [layout.to_matrices(x) for x in out.hidden_states],
                "svt": out.svt_states,
            }
            if maps:
                found["attention"] = [layout.to_maps(each) for each in out.attentions or ()]
            if words:
                number = jnp.where(jnp.isin(ids, special), -1, ids)
                found["words"] = layout.to_matrices(number[..., None])[..., 0]
            return {**found, "mask": layout.mask}

        def measured(parts: dict[str, Array], weights: Array) -> tuple[dict[str, Array], Array]:
            state = LayerState(**parts, most=shape.slots)
            return measure(state, names), histogram(state, weights)

        self._forward = jax.jit(
            forward,
            in_shardings=(None, batch),
            out_shardings=batch,
            compiler_options=compiler_options("inference"),
        )
        self._measure = jax.jit(measured, in_shardings=batch, out_shardings=replicated(mesh))
        self._encoder_of, self._pairs = encoder_of, pairs

    @property
    def batches(self) -> int:
        """Number of batches that the sample is measured in."""
        return len(self._batches)

    def read(self, holder: State) -> Reading:
        """One pass over the sample with the holder's parameters."""
        state = holder.params, holder.constants
        with jax.set_mesh(self._mesh):
            read = [self._read_batch(state, batch) for batch in self._batches]
            encoder = self._encoder_of(state)
        real = [batch["weights"] > 0 for batch in self._batches]
        return {
            "examples": self._examples,
            "alpha": {str(n): float(alpha) for n, alpha in encoder.alphas.items()},
            "svt": plain_parameters(encoder.svt_parameters),
            "states": [
                {"layer": layer, "state": kind, **_means([each[n][1] for each in read], real)}
                for n, ((layer, kind), _) in enumerate(read[0])
            ],
        }

    def _read_batch(self, state: tuple[nnx.State, nnx.State], batch: Batch) -> list[tuple[Place, Measured]]:
        arrays = {name: jax.device_put(values, batch_sharding(self._mesh)) for name, values in batch.items()}
        found = self._forward(state, arrays)
        shared = {name: found[name] for name in ("mask", "words") if name in found}
        places: list[tuple[Place, dict[str, Array]]] = []
        for n, x in enumerate(found["output"]):
            parts = {"x": x}
            if n and self._pairs:
                parts["before"] = found["output"][n - 1]
            if n and "attention" in found:
                parts["attention"] = found["attention"][n - 1]
            places.append(((n - 1 if n else None, "output"), parts))
        for n, (before, after) in found["svt"].items():
            places.append(((n, "svt_input"), {"x": before}))
            places.append(((n, "svt_output"), {"x": after, **({"before": before} if self._pairs else {})}))
        # dispatch all before reading the first
        measured = [(place, self._measure({**parts, **shared}, arrays["weights"])) for place, parts in places]
        return [(place, jax.device_get(values)) for place, values in measured]


def histogram(state: LayerState, weights: Array) -> Array:
    """The mean histogram of sigma_i / sigma_1 over the examples, [BINS]; times the sum of the weights.

    Args:
      weights: float[E], 0 for places without example.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[4.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])  # the last token is masked out: values 4 and 2
      >>> found = histogram(LayerState(x, jnp.array([[1, 1, 0]])), jnp.ones(1))
      >>> [round(float(found[n]), 2) for n in (50, 99)]
      [0.5, 0.5]
    """
    ratios, real = measures.ratios_to_largest(state.sigma, state.count)
    bins = jnp.minimum((ratios * BINS).astype(jnp.int32), BINS - 1)  # the ratio 1 belongs to the last bin
    share = jnp.where(real, 1.0, 0.0) / jnp.maximum(state.count, 1).astype(ratios.dtype)[:, None]
    return jnp.zeros(BINS, ratios.dtype).at[bins].add(share * weights[:, None])


def _means(measured: Sequence[Measured], real: Sequence[np.ndarray]) -> dict[str, Any]:
    """Means over the examples of all batches, or over the batches for measures of the sample; and the histogram."""
    values = {}
    for name in measured[0][0]:
        of_batches = [np.asarray(found[name], np.float64) for found, _ in measured]
        of_sample = of_batches[0].ndim == 0
        values[name] = np.concatenate(
            [each[None] if of_sample else each[chosen] for each, chosen in zip(of_batches, real, strict=True)]
        )
    shares = sum(histogram.astype(np.float64) for _, histogram in measured) / sum(map(np.sum, real))
    return {
        **{name: float(np.mean(each)) for name, each in values.items()},
        "std": {name: float(np.std(each)) for name, each in values.items()},
        "histogram": [round(float(share), 6) for share in shares],
    }
