"""Classification and regression heads on an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.embeddings import Pooler
from svt_jax.models.encoder import Encoder, EncoderOutput
from svt_jax.models.layers import LayerNorm, Linear, dropout_once, first_token
from svt_jax.models.packed import Layout, OneInEachRow

if TYPE_CHECKING:
    import svt_jax

Array = jax.Array


class Classifier(nnx.Module):
    """An encoder and the head of transformers' <Family>ForSequenceClassification, by `EncoderConfig.head`.

      pooled  W drop(pooled) + b                                       BERT, ALBERT, Nomic, GTE
      tanh    W drop(tanh(V drop(x[:, 0]) + a)) + b                    RoBERTa, ESM, MPNet
      gelu    W drop(gelu(V drop(x[:, 0]) + a)) + b                    ELECTRA
      relu    W drop(relu(V x[:, 0] + a)) + b                          DistilBERT
      norm    W drop(LN(act(V p + a))) + b, p = x[:, 0] or the mean    ModernBERT

    Args:
      encoder: the encoder. Its pooler is removed where the head has no use for it, and made where it needs one, as in
        transformers.
      num_labels: classes; 1 for regression.
      rngs: for the head's random initialisation.

    Attributes:
      class_names: names of the classes in the order of the logits; None calls them LABEL_0, LABEL_1, ...
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, encoder: Encoder, num_labels: int, *, rngs: nnx.Rngs):
        config = encoder.config

        def dense(out_size: int, *axes: str, use_bias: bool = True) -> Linear:
            size, scale, ends = config.hidden_size, config.initializer_range, (axes[0], axes[1])
            # logits are float32 whatever the body's dtype
            return Linear(
                size, out_size, ends, initializer_range=scale, dtype=jnp.float32, rngs=rngs, use_bias=use_bias
            )

        self.encoder = encoder
        if config.head != "pooled":
            encoder.pooler = None
        elif encoder.pooler is None:
            # explicit, for NNX took the encoder's None for a static value
            encoder.pooler = nnx.data(Pooler(config, dtype=encoder.dtype, rngs=rngs))
        self.dense = (
            dense(config.hidden_size, "embed", "pooled", use_bias=config.head_bias) if config.head != "pooled" else None
        )
        self.norm = (
            LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs, use_bias=config.norm_bias)
            if config.head == "norm"
            else None
        )
        self.classifier = dense(num_labels, "pooled", "labels")
        self._head, self._activation = config.head, ACTIVATION_FUNCTIONS[config.head_act]
        self._mean = config.pooling == "mean"
        self._dropout = config.classifier_dropout

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Returns logits float32[B, num_labels]; the arguments are those of the encoder."""
        first = not self._mean
        out = self.encoder(input_ids, attention_mask, token_type_ids, rngs=rngs, first_token_only=first)
        shape = jnp.shape(input_ids)
        mask = jnp.ones(shape, bool) if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        return self._logits(out, OneInEachRow(mask), rngs)

    @property
    def num_labels(self) -> int:
        """Number of classes; 1 for regression."""
        return self.classifier.out_features

    def predict(
        self, texts: Iterable[str] | Iterable[tuple[str, str]], tokenizer: Any = None, *, max_length: int = 128
    ) -> svt_jax.Predictions:
        """Class names and probabilities of texts, or of pairs of texts: `svt_jax.predict` of this classifier.

        Raises:
          ValueError: also without a tokenizer, which a classifier in memory does not have.
        """
        import svt_jax  # imported here: what predicts stands above the models

        return svt_jax.predict(self, texts, tokenizer, max_length=max_length)

    def classify(
        self, input_ids: Array, token_type_ids: Array, layout: Layout, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array | None]:
        """Returns logits [E, num_labels] and `svt_failures` of examples that lie in rows as `Encoder.encode` takes them."""
        out = self.encoder.encode(input_ids, token_type_ids, layout, rngs=rngs, first_token_only=not self._mean)
        return self._logits(out, layout, rngs), out.svt_failures

    def classify_with_term(
        self, ids: Array, token_type_ids: Array, layout: Layout, counted: Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array, Array | None]:
        """As `classify` for a model with a remedy of site `loss`: logits, the weighted term, and its state after this step.

        Args:
          counted: bool[E], false for examples that only fill up the batch.
        """
        out = self.encoder.encode(ids, token_type_ids, layout, rngs=rngs, output_hidden_states=True)
        assert out.hidden_states is not None
        term, state = self.encoder.loss_term(out.hidden_states, layout, counted)
        assert term is not None
        if not self._mean:
            out = dataclasses.replace(out, last_hidden_state=layout.first_tokens(out.last_hidden_state))
        return self._logits(out, layout, rngs), term, state

    @jax.named_scope("head")
    def _logits(self, out: EncoderOutput, layout: Layout, rngs: nnx.Rngs | None) -> Array:
        key = None if rngs is None else rngs.dropout()
        if self.dense is None:
            assert out.pooled is not None, "this family's head works on the pooled output"
            x = out.pooled.astype(jnp.float32)
        else:
            x = layout.means(out.last_hidden_state) if self._mean else first_token(out.last_hidden_state)
            x = x.astype(jnp.float32)  # [B, D]
            if self._head in ("tanh", "gelu"):
                first, key = (None, None) if key is None else jax.random.split(key)
                act = jnp.tanh if self._head == "tanh" else ACTIVATION_FUNCTIONS["gelu"]
                x = act(self.dense(dropout_once(x, self._dropout, first)))
            elif self.norm is not None:
                x = self.norm(self._activation(self.dense(x)))
            else:
                x = jax.nn.relu(self.dense(x))
        return self.classifier(dropout_once(x, self._dropout, key))
