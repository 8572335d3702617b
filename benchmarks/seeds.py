"""What seeds side by side cost: `python -m benchmarks.seeds`.

    python -m benchmarks.seeds                                         the demo
    python -m benchmarks.seeds --model FOLDER --source GLUE_FOLDER     MiniLM or another model, on RTE

For each number S of seeds: seconds to compile their one program, milliseconds of a step of all of them, and its memory
by the compiler's analysis; beside S steps of a single run's program, in turns in one process. A single run's program
would be compiled S times, or found in the cache by all but the first process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import environment, table
from svt_jax.data.shards import global_batch
from svt_jax.host import keep_freed_memory
from svt_jax.mesh import batch_sharding
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.checkpoint import TrainState
from svt_jax.run.command_line import make_config
from svt_jax.run.config import TrainConfig
from svt_jax.training.optimizer import Rates
from svt_jax.training.setup import Experiment, setup
from svt_jax.training.stacked import Stack, compile_step

NUMBERS = [1, 2, 4, 8]


class Single:
    """Steps of a single run's program."""

    def __init__(self, experiment: Experiment, state: TrainState, batch: dict[str, np.ndarray]):
        self._experiment, self._state = experiment, jax.tree.map(lambda leaf: leaf + 0, state)
        plan, sharding = experiment.plan, batch_sharding(experiment.model.mesh)
        self._batch = global_batch(batch, sharding, plan.num_rows, plan.num_examples)
        start = time.perf_counter()
        self._compiled = experiment.step.lower(self._state, self._batch, np.int32(0), np.int32(0)).compile()
        self.seconds = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        self.bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes

    def step(self) -> None:
        self._state, found = self._compiled(self._state, self._batch, np.int32(0), np.int32(0))
        jax.block_until_ready(found)


class SideBySide:
    """Steps of several runs' program."""

    def __init__(self, experiment: Experiment, state: TrainState, batch: dict[str, np.ndarray], number: int):
        self._program = compile_step(experiment, state, number)
        self.seconds, self.bytes = self._program.seconds, self._program.bytes
        self._stack = Stack.of(self._program, [state] * number)
        stacked = self._program.stacked
        self._batch = {name: stacked([values] * number) for name, values in batch.items()}
        self._seeds = stacked([np.int32(n) for n in range(number)])
        self._rates = Rates(*(stacked([np.float32(rate)] * number) for rate in Rates.of(experiment.config.optim)))

    def step(self) -> None:
        self._stack.state, found = self._program(self._stack.state, self._batch, self._seeds, self._rates, 0)
        jax.block_until_ready(found)


def measure(config: TrainConfig, numbers: list[int], turns: int) -> list[dict[str, Any]]:
    """A row for each number of seeds."""
    with tempfile.TemporaryDirectory() as output:
        run = dataclasses.replace(config.run, name="seeds", output_dir=output)
        experiment = setup(dataclasses.replace(config, run=run), one_device=True)
        model = experiment.model
        state = TrainState(model.params, model.constants, experiment.init_optimizer(model.params))
        batch = {name: values for name, values in next(experiment.batches.from_batch(0)).items() if name != "index"}
        single, rows = Single(experiment, state, batch), []
        for number in numbers:
            several = SideBySide(experiment, state, batch, number)
            ours, theirs = [], []
            for turn in range(turns + 1):
                start = time.perf_counter()
                several.step()
                middle = time.perf_counter()
                for _ in range(number):
                    single.step()
                if turn:
                    ours.append(middle - start)
                    theirs.append(time.perf_counter() - middle)
            rows.append(
                {
                    "seeds": number,
                    "compile_s": several.seconds,
                    "step_ms": 1e3 * float(np.median(ours)),
                    "one_after_another_ms": 1e3 * float(np.median(theirs)),
                    "ratio": float(np.median(np.array(ours) / np.array(theirs))),
                    "times_one_run": float(np.median(np.array(ours) / np.array(theirs)) * number),
                    "gib": several.bytes / 2**30,
                    "single_compile_s": single.seconds,
                    "single_gib": single.bytes / 2**30,
                }
            )
            del several
        experiment.checkpoints.close()
        if experiment.lock is not None:
            experiment.lock.release()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model with its tokenizer; without it, the demo's")
    parser.add_argument("--source", type=Path, help="folder in the GLUE download layout, for --model")
    parser.add_argument("--task", default="rte")
    parser.add_argument("--function", default="none", help="svt.function")
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="numbers of seeds")
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    keep_freed_memory()
    values: dict[str, Any] = {"log": {"progress": False}}
    if arguments.model:
        values |= {"model": {"path": str(arguments.model)}}
        values |= {"data": {"task": arguments.task, "source": str(arguments.source)}}
    config = dataclasses.replace(make_config(values), svt=SVTConfig(arguments.function))
    rows = measure(config, arguments.numbers, arguments.turns)
    header = ["seeds", "compile s", "step ms", "one after another ms", "ratio", "times one run", "GiB"]
    cells = [list(row.values())[:7] for row in rows]
    print(table(header, cells))
    print(f"\na single run: compile {rows[0]['single_compile_s']:.1f} s, {rows[0]['single_gib']:.2f} GiB")
    print("\n" + json.dumps({"environment": environment(), "rows": rows}))


if __name__ == "__main__":
    main()
