"""All figures of a machine with a GPU or a TPU in one command: `python -m benchmarks.accelerator --output FILE.jsonl`.

Random weights and random tokens, no network, under ten minutes. Each part is a process with a time limit of its own;
each result is written as it comes, a line of JSON, so that a part that is stopped leaves what it had:

  device   the devices, their memory, versions, and the rate of one large product in each precision
  numbers  whether the accelerator gives the CPU's numbers: each solver's value and gradient beside float64, logits and
           gradients of a small model beside the CPU's, in full float32, in the device's default precision, in bfloat16
  svt      SVT of [32, L, D], forward and backward, by solver; `eigh` by implementation where JAX offers a choice
  step     a training step of packed rows, MiniLM's size and bert-base's, float32 (products in TF32) and bfloat16, plain and SoftDecay,
           beside transformers in PyTorch on the same device and shapes (SDPA; torch.compile off and on)
  seeds    a step of 1, 4 and 8 seeds of MiniLM's size side by side, beside as many steps of one (the demo's texts, float32)
  compile  seconds from the start of a process to the end of the first step, with an empty compilation cache and a full one

Rates are tokens a second; "of large product" is the program's counted FLOPs a second over those of the large product in
the same precision: FLOP utilisation against a measured peak. PyTorch's rows are left out where it is not installed.
Ends with a table of each part. --small takes small sizes, to try it on a CPU; --parts takes some of the parts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import svt_jax
from benchmarks.accuracy import errors, matrices
from benchmarks.body import SIZES, make_batch, our_training, packed_batch, torch_candidates
from benchmarks.seeds import measure as measure_seeds
from benchmarks.timing import environment, table, torch_device
from svt_jax.data.demo import load_demo
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.packed import read_batch
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.command_line import make_config
from svt_jax.run.task_model import DEMO_ENCODER, random_classifier
from svt_jax.spectral.base import Solver

ROOT = Path(__file__).parents[1]
LIMITS = {"device": 40, "numbers": 80, "svt": 120, "step": 170, "seeds": 70, "compile": 70}
"""Seconds of each part."""
Result = dict[str, Any]


def milliseconds(call: Callable[[], Any], calls: int = 50, seconds: float = 1.0) -> dict[str, float]:
    """Median and least time of a call, after two that are not counted; fewer calls where they take long."""
    for _ in range(2):
        jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < calls and (sum(taken) < seconds or len(taken) < 3):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return {"median_ms": 1e3 * float(np.median(taken)), "least_ms": 1e3 * min(taken), "calls": len(taken)}


def device(*, small: bool) -> Iterator[Result]:
    for each in jax.devices():
        memory = (each.memory_stats() or {}).get("bytes_limit") if each.platform != "cpu" else None
        yield {"device": str(each), "kind": each.device_kind, "memory_bytes": memory}
    yield {"environment": environment()}
    size = 512 if small else 8192
    for name in ("float32", "tensorfloat32", "bfloat16"):
        with jax.default_matmul_precision(name):
            a = jnp.ones((size, size), jnp.bfloat16 if name == "bfloat16" else jnp.float32)
            product = jax.jit(jnp.matmul).lower(a, a).compile()
        found = milliseconds(functools.partial(product, a, a), calls=20)
        yield {"large_product": name, "size": size, **found, "tflops": 2e-9 * size**3 / found["median_ms"]}


def _functions() -> dict[str, tuple[svt_jax.SoftDecay, tuple[Solver, ...]]]:
    every: tuple[Solver, ...] = ("shifted", "gram", "gram64", "svd")
    centred, published = (svt_jax.SoftDecay(alpha=-0.5, centered=each) for each in (True, False))
    return {"centred": (centred, every), "published": (published, every[1:])}


def _forward_backward(function: svt_jax.SoftDecay, solver: Solver) -> Callable[..., Any]:
    def run(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, vjp = jax.vjp(lambda x: svt_jax.svt(x, function, solver=solver), x)
        return out, vjp(cotangent)[0]

    return run


def numbers(*, small: bool) -> Iterator[Result]:
    x = matrices(1e3, shape=(4, 32, 48) if small else (8, 64, 192))
    for form, (function, solvers) in _functions().items():
        for solver in solvers:
            value, gradient = errors(x, function, solver)
            yield {"svt": f"{form}, {solver}", "value_error": value, "gradient_error": gradient}

    batch, static = packed_batch(make_batch(DEMO_ENCODER.vocab_size, 8, 16))

    def run(dtype: str) -> list[np.ndarray]:
        model = random_classifier(DEMO_ENCODER, SVTConfig("centered_soft_decay"), 2, dtype=dtype, seed=0)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

        @jax.jit
        def value_and_gradient(params: Any) -> Any:
            def loss(params: Any) -> Any:
                logits = nnx.merge(graphdef, params, rest).classify(*read_batch(dict(batch), **static))[0]
                return jnp.sum(logits.astype(jnp.float32) ** 2), logits

            (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            return logits, gradient

        logits, gradient = value_and_gradient(params)
        flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)])
        return [np.asarray(logits, np.float64), flat]

    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("float32"):
        expected = run("float32")
    for name, precision, dtype in (
        ("float32, full", "float32", "float32"),
        ("float32, the device's default", None, "float32"),
        ("bfloat16", None, "bfloat16"),
    ):
        with jax.default_matmul_precision(precision):
            found = run(dtype)
        relative = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, expected, strict=True)]
        yield {"model": name, "logits_error": relative[0], "gradient_error": relative[1]}


def svt(*, small: bool) -> Iterator[Result]:
    sizes = [(8, 16)] if small else [(128, 768), (128, 384), (64, 768), (32, 384), (256, 768), (512, 1024)]
    batch = 4 if small else 32
    for tokens, width in sizes:
        rng = np.random.default_rng(0)
        uniform = rng.normal(size=(batch, tokens, width)) + 3.0 * rng.normal(size=(batch, 1, width))
        x, cotangent = jnp.asarray(uniform, jnp.float32), jnp.ones((batch, tokens, width), jnp.float32)
        for form, (function, solvers) in _functions().items():
            for solver in solvers:
                if solver == "svd" and (tokens, width) not in sizes[:1]:
                    continue  # minutes on a GPU
                start = time.perf_counter()
                compiled = jax.jit(_forward_backward(function, solver)).lower(x, cotangent).compile()
                seconds = time.perf_counter() - start
                yield {
                    "svt": f"{form}, {solver}",
                    "shape": [batch, tokens, width],
                    **milliseconds(functools.partial(compiled, x, cotangent)),
                    "compile_s": seconds,
                }
    yield from _eigenproblems(batch, *sizes[0])


def _eigenproblems(batch: int, tokens: int, width: int) -> Iterator[Result]:
    """`eigh` of X X^T alone by implementation; JAX of some versions offers no choice."""
    kinds = getattr(jax.lax.linalg, "EighImplementation", ())
    x = np.random.default_rng(0).normal(size=(batch, tokens, width)).astype(np.float32)
    gram = jnp.asarray(x @ x.swapaxes(1, 2))
    for kind in kinds:
        result: Result = {"eigh": kind.name, "shape": [batch, tokens, tokens]}
        try:
            run = jax.jit(functools.partial(jax.lax.linalg.eigh, implementation=kind)).lower(gram).compile()
            yield {**result, **milliseconds(functools.partial(run, gram))}
        except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
            yield {**result, "left_out": str(error).splitlines()[0]}


def _models(*, small: bool) -> dict[str, tuple[dict[str, int], int, int]]:
    """Fields of a config, examples and tokens of an example."""
    if small:
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return {"small": ({**fields, "vocab_size": 100}, 4, 8)}
    return {name: (fields, 32, 128) for name, (fields, _) in SIZES.items()}


SVTS = {
    "plain": SVTConfig(),
    "SoftDecay, published": SVTConfig("soft_decay"),
    "SoftDecay, centred": SVTConfig("centered_soft_decay"),
    "SoftDecay, centred, shifted": SVTConfig("centered_soft_decay", solver="shifted"),
}


def step(*, small: bool) -> Iterator[Result]:
    for name, (fields, examples, tokens) in _models(small=small).items():
        config = EncoderConfig.from_hf({"model_type": "bert", **fields})
        batch = make_batch(config.vocab_size, examples, tokens)
        arrays, static = packed_batch(batch)
        for dtype in ("bfloat16", "float32"):
            for label, config_of_svt in list(SVTS.items())[:: 3 if small else 1]:
                with jax.default_matmul_precision("bfloat16" if dtype == "bfloat16" else "tensorfloat32"):
                    run, compiled, seconds = our_training(config, config_of_svt, arrays, dtype, static)
                cost = compiled.cost_analysis() or {}
                found = milliseconds(run)
                yield {
                    "model": name,
                    "dtype": dtype,
                    "svt": label,
                    "examples": examples,
                    "tokens": tokens,
                    **found,
                    "tokens_per_second": 1e3 * examples * tokens / found["median_ms"],
                    "flops": float(cost.get("flops", 0.0)),
                    "compile_s": seconds,
                }
            yield from _torch_steps(name, fields, batch, dtype, small=small)


def _torch_steps(name: str, fields: dict[str, int], batch: Any, dtype: str, *, small: bool) -> Iterator[Result]:
    try:
        import torch
    except ImportError:
        yield {"model": name, "dtype": dtype, "svt": "PyTorch", "left_out": "PyTorch is not installed"}
        return
    examples, tokens = batch["input_ids"].shape
    for compiles in (False, True):
        label = "PyTorch, torch.compile" if compiles else "PyTorch"
        if compiles and (small or torch_device() == "cpu"):
            continue  # it needs a C++ compiler and minutes there
        try:
            precision = "bfloat16" if dtype == "bfloat16" else "tensorfloat32"
            run = torch_candidates(fields, batch, precision, compiles=compiles)["training, PyTorch"]
            found = milliseconds(run)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            yield {"model": name, "dtype": dtype, "svt": label, "left_out": str(error).splitlines()[0]}
            continue
        rate = 1e3 * examples * tokens / found["median_ms"]
        yield {"model": name, "dtype": dtype, "svt": label, **found, "tokens_per_second": rate}


def seeds(*, small: bool) -> Iterator[Result]:
    fields = {} if small else SIZES["minilm"][0]
    with tempfile.TemporaryDirectory() as folder:
        config = EncoderConfig.from_hf({**DEMO_ENCODER.to_hf(), **fields, "vocab_size": DEMO_ENCODER.vocab_size})
        svt_jax.export_hf(Encoder(config, rngs=nnx.Rngs(0)), folder)
        demo_tokenizer().save_pretrained(folder)
        for split in ("train", "validation"):
            stories = load_demo("validation")  # a thousand: enough for a step
            assert stories.second is not None
            assert stories.labels is not None
            rows = ["\t".join(map(str, row)) for row in zip(stories.first, stories.second, stories.labels, strict=True)]
            Path(folder, f"{split}.tsv").write_text("\n".join(["first\tsecond\tlabel", *rows]), encoding="utf-8")
        data = {
            "task": "custom",
            "source": folder,
            "max_length": 64,
            "text_columns": ["first", "second"],
            "label_column": "label",
        }
        run = make_config({"model": {"path": folder}, "data": data, "log": {"progress": False}})
        yield from measure_seeds(run, [1, 2] if small else [1, 4, 8], 3 if small else 20)


def compile_(*, small: bool) -> Iterator[Result]:
    """Trains the demo for one step in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "full"):
            command = [sys.executable, "train.py", "--optim.max_steps", "1", "--run.name", cache]
            command += ["--run.output_dir", f"{folder}/runs"]
            variables = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled", "SVT_JAX_CACHE": f"{folder}/tokens"}
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, capture_output=True)
            results = json.loads(Path(folder, "runs", cache, "results.json").read_text(encoding="utf-8"))
            yield {
                "cache": cache,
                "process_s": time.perf_counter() - start,
                "first_step_s": results["train"]["time_to_first_step_s"],
                "compile_s": results["train"]["compile_time_s"],
            }


PARTS: dict[str, Callable[..., Iterator[Result]]] = {
    "device": device, "numbers": numbers, "svt": svt, "step": step, "seeds": seeds, "compile": compile_,
}  # fmt: skip


def run_part(name: str, limit: float, *, small: bool) -> Iterator[Result]:
    """The results of a part, as its process prints them; a last one says if it failed or was stopped."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", name, *(["--small"] if small else [])]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield {"part": name, **json.loads(line)}
        process.wait()
        timer.cancel()
        process.stdout.close()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    seconds = round(time.perf_counter() - start, 1)
    if stopped.is_set():
        yield {"part": name, "stopped_after_s": seconds}
    elif process.returncode:
        yield {"part": name, "failed": last[0] if last else f"exit status {process.returncode}"}
    else:
        yield {"part": name, "done_after_s": seconds}


def tables(results: list[Result]) -> str:
    """A table for each part, with the columns that its results have."""
    peaks = {each["large_product"]: each["tflops"] for each in results if "large_product" in each}
    texts = []
    for part in dict.fromkeys(each["part"] for each in results):
        rows: dict[tuple[str, ...], list[Result]] = {}
        for each in (each for each in results if each["part"] == part and "environment" not in each):
            shown = {key: value for key, value in each.items() if key not in ("part", "flops")}
            if each.get("flops") and peaks:
                peak = peaks["bfloat16" if each["dtype"] == "bfloat16" else "tensorfloat32"]
                shown["of large product"] = 1e-9 * each["flops"] / each["median_ms"] / peak
            rows.setdefault(tuple(shown), []).append(shown)
        texts += [f"\n{part}"]
        texts += [table(list(keys), [list(each.values()) for each in group]) for keys, group in rows.items()]
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the results, a line of JSON each")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="small sizes, to try it on a CPU")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        for result in PARTS[given.part](small=given.small):
            print(json.dumps(result), flush=True)
        return
    results: list[Result] = []
    for name in given.parts:
        for result in run_part(name, LIMITS[name], small=given.small):
            results.append(result)
            print(json.dumps(result), flush=True)
            if given.output:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
