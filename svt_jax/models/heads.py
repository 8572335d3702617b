"""Classification and regression heads on an encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.models.encoder import Encoder
from svt_jax.models.layers import dropout, linear

Array = jax.Array


class Classifier(nnx.Module):
    """An encoder and the head of transformers' BertForSequenceClassification: dropout, then one dense layer on `pooled`.

    Args:
      encoder: with a pooler.
      num_labels: classes; 1 for regression.
      rngs: for the head's random initialisation.
    """

    def __init__(self, encoder: Encoder, num_labels: int, *, rngs: nnx.Rngs):
        config = encoder.config
        self.encoder = encoder
        # Logits are float32 whatever the body's dtype.
        self.classifier = linear(
            config.hidden_size, num_labels, initializer_range=config.initializer_range, dtype=jnp.float32, rngs=rngs
        )
        self._dropout = config.classifier_dropout

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Logits [B, num_labels], float32; arguments as those of the encoder."""
        pooled = self.encoder(input_ids, attention_mask, token_type_ids, rngs=rngs).pooled
        assert pooled is not None, "this family's head works on the pooled output"
        return self.classifier(dropout(pooled.astype(jnp.float32), self._dropout, rngs))
