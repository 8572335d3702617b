"""FLOPs, bytes and exchanges of a training step by mesh, without the machine: `python -m benchmarks.scaling`.

Each row compiles bert-base's step for N simulated CPU devices in a process of its own and reads the compiler's cost
analysis, its memory analysis and the collectives in the program's text. Nothing is run. docs/scaling.md says what that
is worth, and what not. Each device that divides the batch has 16 rows of 128 tokens: packed, with two examples a row, or
padded, with one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

from benchmarks.timing import environment, table

TOKENS, ROWS = 128, 16
"""Of each device that divides the batch."""
MESHES = ["1,1,1", "2,1,1", "4,1,1", "8,1,1", "256,1,1", "1,256,1", "32,8,1", "64,1,4", "16,4,4"]  # data, fsdp, tensor
SOLVERS = ["none", "gram", "svd"]

# Published for one TPU v5e chip: bf16 FLOP/s, bytes/s of memory, bytes/s of its links together.
PEAK_FLOPS, PEAK_LINKS = 197e12, 200e9


def measure(mesh_shape: str, solver: str, layers: int, dtype: str, layout: Any) -> dict[str, Any]:
    """Measures one row, in a process that has that number of simulated devices."""
    import jax

    sizes = [int(n) for n in mesh_shape.split(",")]
    devices = sizes[0] * sizes[1] * sizes[2]
    jax.config.update("jax_num_cpu_devices", devices)
    from benchmarks.compiled import PER_ROW, collectives, programs
    from svt_jax.mesh import make_mesh
    from svt_jax.models.config import EncoderConfig
    from svt_jax.models.svt_config import SVTConfig

    encoder = EncoderConfig.from_hf({"model_type": "bert", "num_hidden_layers": layers})
    svt = SVTConfig() if solver == "none" else SVTConfig("soft_decay", solver=solver)  # type: ignore[arg-type]
    mesh = make_mesh(*sizes)
    examples = ROWS * sizes[0] * sizes[1] * (PER_ROW if layout == "packed" else 1)
    step, _ = programs(encoder, svt, mesh, batch=examples, tokens=TOKENS, layout=layout, dtype=dtype)
    compiled = step.compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    sent: dict[str, float] = defaultdict(float)
    for each in collectives(compiled.as_text(), mesh):
        sent[" ".join(each.axes)] += each.sent
    return {
        "mesh": mesh_shape,
        "svt": solver,
        "layers": layers,
        "layout": layout,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "sent": sent,
    }


def row(found: dict[str, Any]) -> list[Any]:
    sent = sum(found["sent"].values())
    return [
        found["mesh"],
        found["svt"],
        found["flops"] / 1e12,
        found["bytes"] / 1e9,
        found["state"] / 2**20,
        found["temporary"] / 2**20,
        sent / 1e6,
        1e3 * found["flops"] / PEAK_FLOPS,
        1e3 * sent / PEAK_LINKS,
    ]


HEADER = [
    "data,fsdp,tensor",
    "svt",
    "TFLOP",
    "GB touched",
    "state MiB",
    "temporary MiB",
    "MB sent",
    "ms of FLOPs",
    "ms of links",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", nargs="+", default=MESHES, help="data,fsdp,tensor")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=["none", "svd", "gram", "gram64"])
    parser.add_argument("--layers", type=int, default=12, help="of bert-base's 12")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layout", default="packed", choices=["packed", "padded"])
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        one = arguments.meshes[0], arguments.solvers[0], arguments.layers, arguments.dtype, arguments.layout
        print(json.dumps(measure(*one)))
        return
    results = []
    for mesh in arguments.meshes:
        for solver in arguments.solvers:
            options = ["--layers", str(arguments.layers), "--dtype", arguments.dtype, "--layout", arguments.layout]
            options += ["--meshes", mesh, "--solvers", solver, "--row"]
            command = [sys.executable, "-m", "benchmarks.scaling", *options]
            # Optimizations that do not change the partitioning take most of the time of compiling.
            variables = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
            if done.returncode:
                raise RuntimeError(f"{mesh} {solver}: {done.stderr.strip().splitlines()[-1]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
    print("\n" + table(HEADER, [row(found) for found in results]))
    print("\n" + json.dumps({"environment": environment(), "simulated": True, "results": results}))


if __name__ == "__main__":
    main()
