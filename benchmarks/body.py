"""How long a training step and inference take, beside transformers in PyTorch: `python -m benchmarks.body`.

Random weights of a real size, full batches without padding. Both sides take turns on the same cores, each in a process:

  minilm      6 layers of 384, 12 heads, batch 32 x 128 tokens
  bert-base   12 layers of 768, 12 heads, batch 8 x 128 tokens

--tokens and --batch take other sizes, one table each. A training step is forward with dropout, backward and AdamW on
all parameters; ours also runs with SoftDecay in the last layer, published and centred, by the solvers named. Without an
SVT the last layer computes only the first token, which is all that the head reads. "all tokens" has an operation in the
SVT's place that returns its input; the SVT's share compares a step with this one. Inference is the logits of one batch,
and of three at a time, as evaluation does it. "packed" is the program of packed rows for the same examples, one in each
row: what that program costs where there is no padding to save. Compilation is timed apart. PyTorch's rows are left out
where it is not installed; on a GPU both sides run there. --precision sets that of matrix products: float32 is full on
either side, tensorfloat32 and bfloat16 (PyTorch's by autocast, parameters in float32 on both sides) are for GPUs.
Prints tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.passed_on import PASSED_ON
from benchmarks.timing import (
    Candidates,
    environment,
    in_own_process,
    installed,
    paired,
    ratio,
    table,
    torch_device,
    torch_done,
)
from svt_jax.data.batching import Batch
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens
from svt_jax.host import compiler_options, keep_freed_memory
from svt_jax.mesh import make_mesh
from svt_jax.models.config import EncoderConfig
from svt_jax.models.packed import read_batch
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import OptimConfig
from svt_jax.run.task_model import TaskModel, random_classifier
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.step import TrainState, make_train_step

SIZES: dict[str, tuple[dict[str, int], int]] = {  # fields of a config.json, batch
    "minilm": ({"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}, 32),
    "bert-base": ({}, 8),
}
OFF, ALL_TOKENS = "off", "all tokens"
SVTS = {
    OFF: SVTConfig(),
    ALL_TOKENS: PASSED_ON,
    "soft_decay (svd)": SVTConfig("soft_decay", solver="svd"),
    "soft_decay (gram64)": SVTConfig("soft_decay", solver="gram64"),
    "centered_soft_decay (gram)": SVTConfig("centered_soft_decay", solver="gram"),
    "centered_soft_decay (poly)": SVTConfig("centered_soft_decay", solver="poly"),
    "centered_soft_decay (shifted)": SVTConfig("centered_soft_decay", solver="shifted"),
}
_AT_A_TIME = 3
_MOST_IN_A_ROW = 4
"""Examples that the packed program has room for in a row."""
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def make_batch(vocabulary: int, batch: int, tokens: int, seed: int = 0) -> Batch:
    """A padded batch without padding."""
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(1, vocabulary, (batch, tokens)).astype(np.int32),
        "attention_mask": np.ones((batch, tokens), np.int32),
        "token_type_ids": np.zeros((batch, tokens), np.int32),
        "labels": rng.integers(0, 2, batch).astype(np.int32),
        "weights": np.ones(batch, np.float32),
    }


def packed_batch(batch: Batch) -> tuple[Batch, dict[str, int]]:
    """The examples of `make_batch` as packed rows, and what `read_batch` must know beside them."""
    number, length = batch["input_ids"].shape
    lengths = np.full(number, length, np.int32)
    tokens = Tokens.of_padded(batch["input_ids"], batch["token_type_ids"], lengths, batch["labels"], pad_id=0)
    shape = Shape(number, length, number, longest=length, shortest=max(1, length // _MOST_IN_A_ROW))
    arrays = pack(tokens, np.arange(number), shape)
    del arrays["index"]
    return arrays, shape.static


def our_training(
    config: EncoderConfig, svt: SVTConfig, batch: Batch, dtype: str, static: Mapping[str, int] = MappingProxyType({})
) -> tuple[Callable[[], Any], jax.stages.Compiled, float]:
    """Returns one step on a state that the calls hand on, its program, and the seconds of tracing and compiling it."""
    model = TaskModel.of(random_classifier(config, svt, 2, dtype=dtype, seed=0), make_mesh())
    optimizer = make_optimizer(OptimConfig(), 1000)
    state = TrainState(model.params, model.constants, optimizer.init(model.params))
    step = make_train_step(model, optimizer, static=static)
    arrays = {name: jnp.asarray(values) for name, values in batch.items()}
    start = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=0)
        .lower(state, arrays, np.int32(0), np.int32(0))
        .compile(compiler_options("training"))
    )
    seconds = time.perf_counter() - start
    holder = [state]

    def run() -> Any:
        holder[0], metrics = compiled(holder[0], arrays, np.int32(0), np.int32(0))
        return metrics["loss"]

    return run, compiled, seconds


def our_inference(
    config: EncoderConfig, batch: Batch, dtype: str, static: Mapping[str, int] = MappingProxyType({})
) -> Callable[[], Any]:
    model = random_classifier(config, SVTConfig(), 2, dtype=dtype, seed=0)
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    arrays = {name: jnp.asarray(values) for name, values in batch.items() if name not in ("labels", "weights")}
    compiled = (
        jax.jit(lambda p, c, batch: nnx.merge(graphdef, p, c).classify(*read_batch(batch, **static))[0])
        .lower(params, constants, arrays)
        .compile(compiler_options("inference"))
    )
    return lambda: compiled(params, constants, arrays)


def at_a_time(call: Callable[[], Any], number: int) -> Callable[[], Any]:
    """Makes `number` calls side by side."""
    pool = ThreadPoolExecutor(number)
    done = lambda _: jax.block_until_ready(call())
    return lambda: list(pool.map(done, range(number)))


def torch_candidates(fields: dict[str, int], batch: Batch, precision: str, *, compiles: bool = False) -> Candidates:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    device = torch_device()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    model = BertForSequenceClassification(BertConfig(**fields, num_labels=2)).to(device)
    forward = torch.compile(model) if compiles else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    inputs = {name: torch.tensor(batch[name], dtype=torch.long, device=device) for name in names}

    def cast() -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with cast():
            loss = forward(**inputs).loss
        loss.backward()
        optimizer.step()
        torch_done()

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), cast():
            forward(**{name: inputs[name] for name in names[:3]})
        torch_done()

    return {"training, PyTorch": train, "inference, PyTorch": infer}


def measure(
    name: str, tokens: int, batch_size: int | None, precision: str, svts: list[str], repeats: int
) -> dict[str, Any]:
    fields, size = SIZES[name]
    size = batch_size or size
    config = EncoderConfig.from_hf({"model_type": "bert", **fields})
    batch = make_batch(config.vocab_size, size, tokens)
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    candidates: Candidates = {}
    if installed("torch"):
        candidates |= in_own_process(torch_candidates, fields, batch, precision)
    compile_seconds = {}
    for label in svts:
        row = f"training, {label}"
        candidates[row], _, compile_seconds[row] = our_training(config, SVTS[label], batch, dtype)
    arrays, static = packed_batch(batch)
    row = f"training, {svts[0]}, packed"
    candidates[row], _, compile_seconds[row] = our_training(config, SVTS[svts[0]], arrays, dtype, static)
    candidates["inference"] = our_inference(config, batch, dtype)
    candidates["inference, packed"] = our_inference(config, arrays, dtype, static)
    several = f"inference, {_AT_A_TIME} at a time"
    candidates[several] = at_a_time(candidates["inference"], _AT_A_TIME)
    seconds = paired(candidates, repeats)
    seconds[several] = seconds[several] / _AT_A_TIME  # for each batch
    whole = f"training, {ALL_TOKENS}"
    rows = []
    for row, values in seconds.items():
        other = f"{row.split(',')[0]}, PyTorch"
        times = ratio(seconds, other, row) if other in seconds and row != other else ""
        transforms = row in [f"training, {label}" for label in svts if label not in (OFF, ALL_TOKENS)]
        share = f"{1 - ratio(seconds, whole, row):.1%}" if transforms and whole in seconds else ""
        median = float(np.median(values))
        low, high = 1e3 * np.percentile(values, [10, 90])
        spread = f"{low:.3g} to {high:.3g}"
        rows.append([row, 1e3 * median, spread, size / median, times, share, compile_seconds.get(row, "")])
    print(f"\n{name}, {precision}: batch {size} x {tokens} tokens, {repeats} turns")
    header = ["", "median ms", "p10 to p90", "examples/s", "times PyTorch's rate", "the SVT's share", "compile s"]
    print(table(header, rows), flush=True)
    spreads = {row: np.percentile(values, [10, 50, 90]).tolist() for row, values in seconds.items()}
    return {"model": name, "tokens": tokens, "batch": size, "precision": precision, "p10_p50_p90_s": spreads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[128], help="of each example")
    parser.add_argument("--batch", type=int, help="examples; default: that of the model")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    default_svts = [OFF, ALL_TOKENS, "soft_decay (svd)", "centered_soft_decay (gram)"]
    parser.add_argument("--svts", nargs="+", choices=list(SVTS), default=default_svts)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each candidate")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.precision != "bfloat16":  # JAX's default on a GPU is less
        jax.config.update("jax_default_matmul_precision", arguments.precision)
    sizes = itertools.product(arguments.models, arguments.tokens)
    results = [
        measure(name, tokens, arguments.batch, arguments.precision, arguments.svts, arguments.repeats)
        for name, tokens in sizes
    ]
    print("\n" + json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
