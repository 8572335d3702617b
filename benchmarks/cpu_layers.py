"""What each form in `models/cpu_layers.py` gains on this CPU: `python -m benchmarks.cpu_layers`.

A training step of 6 layers of 384 (dropout 0.1) is compiled as it is, and with each form replaced by the plain
operation. The batch is padded, without padding. All of them take turns. Prints the plain form's time divided by ours.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.body import make_batch, our_training
from benchmarks.timing import environment, paired, ratio, table
from svt_jax.models import layers
from svt_jax.models.config import EncoderConfig
from svt_jax.models.svt_config import SVTConfig

ENCODER = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 8000,
}


PLAIN: dict[str, Callable[..., Any]] = {
    "repeated": lambda row, times: jnp.broadcast_to(row, (times, *row.shape)),
    "kept": lambda x, number: x,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 64])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    config = EncoderConfig.from_hf({**ENCODER, "num_hidden_layers": arguments.layers})
    rows: list[list[Any]] = []
    for tokens in arguments.tokens:
        batch = make_batch(config.vocab_size, arguments.batch, tokens)
        make = functools.partial(our_training, config, SVTConfig(), batch, "float32")
        steps = {"ours": make()[0]}
        for name, plain in PLAIN.items():
            with mock.patch.object(layers, name, plain):
                jax.clear_caches()  # the encoder keeps the trace of a layer, with the form that it had
                steps[f"plain {name}"] = make()[0]
        seconds = paired(steps, arguments.repeats)
        rows += [[tokens, name, ratio(seconds, name, "ours")] for name in steps if name != "ours"]
    print(table(["tokens", "", "its time over ours"], rows))
    print("\n" + json.dumps({"environment": environment(), **vars(arguments)}))


if __name__ == "__main__":
    main()
