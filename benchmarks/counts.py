"""Counts of the compiled programs, which have no noise, compared with committed ones: `python -m benchmarks.counts`.

    python -m benchmarks.counts            prints them; status 1 if one rose by more than 5 %, with its name
    python -m benchmarks.counts --write    takes them as the new ones (benchmarks/counts.json)

The compiler counts, for a BERT of 2 layers of 128 and 16 examples on simulated CPU devices, packed into 8 rows of 64
tokens or padded to 64 (`benchmarks.compiled.programs`): floating-point operations (LAPACK's calls count as none), bytes
that the kernels touch, peak memory of intermediate results, collectives and the bytes that each device sends. `svt` is
only the transformation, forward and backward, of 8 matrices of 128 x 768. The demo's run counts the programs that it
compiles. The counts belong to one version of JAX, named in the file; with another nothing is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program that is found there is not compiled

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402

from benchmarks.compiled import collectives, programs  # noqa: E402
from benchmarks.timing import table  # noqa: E402
from svt_jax.cli import train  # noqa: E402
from svt_jax.mesh import make_mesh  # noqa: E402
from svt_jax.models.config import EncoderConfig  # noqa: E402
from svt_jax.models.svt_config import SVTConfig  # noqa: E402
from svt_jax.spectral.functions import SoftDecay  # noqa: E402
from svt_jax.spectral.transform import svt  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
RISE = 1.05
ENCODER = {
    "model_type": "bert",
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
Layout = Literal["packed", "padded"]
PROGRAMS: list[tuple[str, str, tuple[int, int, int], Layout]] = [  # function, solver, data x fsdp x tensor, layout
    ("none", "auto", (1, 1, 1), "packed"),
    ("none", "auto", (1, 1, 1), "padded"),
    ("soft_decay", "svd", (1, 1, 1), "packed"),
    ("centered_soft_decay", "gram", (1, 1, 1), "packed"),
    ("centered_soft_decay", "gram", (1, 1, 1), "padded"),
    ("centered_soft_decay", "gram", (8, 1, 1), "packed"),
    ("centered_soft_decay", "gram", (2, 2, 2), "packed"),
]
Counts = dict[str, dict[str, float]]


def read(compiled: Any) -> dict[str, float]:
    cost = compiled.cost_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def steps(function: str, solver: str, sizes: tuple[int, int, int], layout: Layout) -> Counts:
    """Counts the training step and the evaluation step."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    config = SVTConfig(function, solver=solver)  # type: ignore[arg-type]
    names = [function, *([] if function == "none" else [solver]), "x".join(map(str, sizes)), layout]
    counts = {}
    for kind, program in zip(
        ("training", "evaluation"),
        programs(EncoderConfig.from_hf(ENCODER), config, mesh, batch=16, tokens=64, layout=layout),
        strict=True,
    ):
        compiled = program.compile()
        found = collectives(compiled.as_text(), mesh)
        exchanged = {"collectives": float(len(found)), "sent_bytes": sum(each.sent for each in found)}
        counts[" ".join([kind, *names])] = {**read(compiled), **(exchanged if mesh.size > 1 else {})}
    return counts


def transformation(solver: str) -> Counts:
    def loss(x: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.sum(svt(x, SoftDecay(alpha, centered=True), solver=solver))  # type: ignore[arg-type]

    arguments = jax.ShapeDtypeStruct((8, 128, 768), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    return {f"svt {solver}": read(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile())}


def demo() -> Counts:
    """Counts the programs that `train.py` compiles in five steps, one evaluation and one checkpoint of the demo."""
    compiled = 0

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    config = Path(__file__).parents[1] / "configs" / "demo.yaml"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--config", config, "--run.output_dir", folder, "--run.name", "run", "--optim.max_steps", "5"]
        with contextlib.redirect_stdout(sys.stderr):
            assert train([*map(str, options), "--log.progress", "false"]) == 0, "the demo fails"
        training = json.loads((Path(folder) / "run" / "results.json").read_text())["train"]
    return {"demo, 5 steps": {"programs": float(compiled), "training_steps_compiled": float(training["compiles"])}}


def risen(now: Counts, committed: Counts) -> list[str]:
    """Returns a line for each count that rose by more than 5 %, and for each that is new or gone.

    Example:
      >>> risen({"step": {"flops": 110.0, "bytes": 100.0}}, {"step": {"flops": 100.0, "bytes": 100.0}})
      ['step, flops: 110, committed 100 (+10.0 %)']
    """
    lines = []
    for name in sorted(now.keys() | committed.keys()):
        new, old = now.get(name, {}), committed.get(name, {})
        if new.keys() != old.keys():
            lines.append(f"{name}: has {', '.join(new) or 'nothing'}, committed {', '.join(old) or 'nothing'}")
            continue
        lines += [
            f"{name}, {count}: {new[count]:g}, committed {old[count]:g}"
            + (f" ({100 * (new[count] / old[count] - 1):+.1f} %)" if old[count] else "")
            for count in new
            if new[count] > RISE * old[count]
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="take these counts as the committed ones")
    write = parser.parse_args().write
    committed = json.loads(FILE.read_text()) if FILE.exists() else {"jax": None, "counts": {}}
    if not write and committed["jax"] != jax.__version__:
        print(f"not compared: {FILE.name} is of jax {committed['jax']}, this is {jax.__version__}")
        return 0
    now = demo()
    for program in PROGRAMS:
        now |= steps(*program)
    for solver in ("gram", "poly", "shifted"):
        now |= transformation(solver)
    columns = ["flops", "bytes", "temporary_bytes", "collectives", "sent_bytes", "programs"]
    print(table(["", *columns], [[name, *(found.get(c, "") for c in columns)] for name, found in now.items()]))
    if write:
        FILE.write_text(json.dumps({"jax": jax.__version__, "counts": now}, indent=1) + "\n")
        return 0
    lines = risen(now, committed["counts"])
    print("\n".join(lines) or "none rose by more than 5 %")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
