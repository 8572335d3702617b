"""Time and memory of a training step by length of the row: `python -m benchmarks.lengths`.

The small model is a ModernBERT of six layers of 192, two of them with full attention, and windows of 128 tokens. One row
has one example of its whole length. Time is the least of several steps, of the clock and of the processors, which other
programs disturb less; memory is the temporary buffers of the compiled program. "blocks" is the encoder as it is; in "whole rows" sliding layers mask whole rows. `--base` compiles ModernBERT-base
(22 layers of 768) for abstract weights, prints its memory and FLOPs, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled import Program, programs
from benchmarks.growth import exponent
from benchmarks.timing import environment, table
from svt_jax.mesh import make_mesh
from svt_jax.models import encoder_layer
from svt_jax.models.config import EncoderConfig
from svt_jax.models.svt_config import SVTConfig

LENGTHS = [512, 1024, 2048, 4096, 8192]
SMALL = {
    "vocab_size": 1000,
    "pad_token_id": 0,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 288,
}


def step_of(fields: dict[str, Any], tokens: int, *, dtype: str, remat: bool) -> Program:
    """The training step of one row of that length."""
    encoder = EncoderConfig.from_hf({"model_type": "modernbert", **fields})
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return programs(
        encoder, SVTConfig(), mesh, batch=1, tokens=tokens, layout="padded", per_row=1, dtype=dtype, remat=remat
    )[0]


def drawn(arguments: Any) -> Any:
    """Arrays for a program's abstract arguments: small random numbers, and ones."""
    rng = np.random.default_rng(0)

    def one(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        whole = not jnp.issubdtype(leaf.dtype, jnp.floating)
        values = np.ones(leaf.shape) if whole else 0.02 * np.abs(rng.normal(size=leaf.shape))
        return jax.device_put(jnp.asarray(values, leaf.dtype), leaf.sharding)

    return jax.tree.map(one, arguments)


def measure(fields: dict[str, Any], tokens: int, repeats: int, *, dtype: str, remat: bool) -> dict[str, Any]:
    """Compiles one step, and runs it unless repeats is 0."""
    program = step_of(fields, tokens, dtype=dtype, remat=remat)
    start = time.perf_counter()
    compiled = program.compile()
    compiling = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    taken: list[tuple[float, float]] = []
    if repeats:
        state, *rest = drawn(program.arguments)
        for _ in range(repeats + 1):
            clock, processors = time.perf_counter(), time.process_time()
            state, *_ = jax.block_until_ready(compiled(state, *rest))  # the step takes its state's memory over
            taken.append((time.perf_counter() - clock, time.process_time() - processors))
    seconds, of_cpu = map(min, zip(*taken[1:], strict=True)) if taken else (None, None)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "CPU seconds": of_cpu,
        "MiB": memory.temp_size_in_bytes / 2**20,
        "state MiB": memory.argument_size_in_bytes / 2**20,
        "GFLOP": cost["flops"] / 1e9,
        "compile seconds": compiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", type=int, default=4096, help="longest row that is also measured without blocks")
    parser.add_argument("--base", action="store_true", help="ModernBERT-base, compiled and not run")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true")
    options = parser.parse_args()
    fields: dict[str, Any] = {} if options.base else SMALL
    results = []
    for name in ("blocks", "whole rows"):
        for tokens in options.lengths:
            if name == "whole rows" and tokens > options.whole:
                continue
            pays = encoder_layer.blocks_pay if name == "blocks" else lambda tokens, window: False
            with mock.patch.object(encoder_layer, "blocks_pay", pays):
                repeats = 0 if options.base else options.repeats
                found = measure(fields, tokens, repeats, dtype=options.dtype, remat=options.remat)
            results.append({"attention": name, **found})
            print(json.dumps(results[-1]), flush=True)
            jax.clear_caches()
    names = ["seconds", "CPU seconds", "MiB", "GFLOP"][2 * options.base :]
    print(
        "\n"
        + table(["attention", "tokens", *names], [[r[k] for k in ("attention", "tokens", *names)] for r in results])
    )
    for attention in ("blocks", "whole rows"):
        rows = [r for r in results if r["attention"] == attention][-2:]
        if len(rows) == 2:
            grown = {k: round(exponent([r["tokens"] for r in rows], [r[k] for r in rows]), 2) for k in names}
            print(f"{attention}, from {rows[0]['tokens']} to {rows[1]['tokens']} tokens, grows by a power of {grown}")
    print("\n" + json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
