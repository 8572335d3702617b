"""Fine-tuning and evaluation on real GLUE tasks, beside PyTorch on the same cores: `python -m benchmarks.glue`.

    python -m benchmarks.glue --model FOLDER --source GLUE_FOLDER [--task cola rte] [--output FILE.json]

All take turns on the same cores, each in its process, from the same weights, with AdamW, linear decay, batch 32 x 128:

  svt_jax     the very run that train.py makes (its experiment and loop, with batches, transfers, metrics and log); each chunk of
              batches is followed by a chunk of PyTorch's. Seconds are those of the run's own clock, which stands still
              while a program is compiled; compilation is reported apart. --layout says how its batches are laid out
  PyTorch     the loop of `benchmarks.torch_training`: transformers, random batches padded to a multiple of 8
  grouped     the same with transformers' LengthGroupedSampler (group_by_length), as svt_jax does with --layout padded

Training runs without a transformation and with SoftDecay of real tokens before the last norm (PyTorch's through
torch.svd). A rate is that of all turns together, because batches differ in length; `turns` is the median of the paired
turns' ratios. Evaluation takes the whole validation set, PyTorch's in its order and sorted by length.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks.timing import Candidates, environment, in_own_process, installed, paired, ratio, table
from svt_jax.data.batching import Batch, TrainingBatches
from svt_jax.data.glue import TASKS
from svt_jax.evaluation.glue import Evaluator
from svt_jax.host import keep_freed_memory
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import DataConfig, LogConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from svt_jax.run.task_model import TaskModel
from svt_jax.training.loop import train
from svt_jax.training.session import Run
from svt_jax.training.setup import setup
from svt_jax.training.train import own_callbacks

OURS = "svt_jax"
BATCH_SIZE = 32
FUNCTIONS = ("none", "soft_decay")


@dataclasses.dataclass
class Rate:
    """Examples and seconds of each turn."""

    examples: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def add(self, examples: int, seconds: float) -> None:
        self.examples.append(examples)
        self.seconds.append(seconds)

    @property
    def total(self) -> float:
        return sum(self.examples) / sum(self.seconds)

    @property
    def turns(self) -> np.ndarray:
        return np.asarray(self.examples) / np.asarray(self.seconds)


class TurnsOverError(Exception):
    """Ends the run when every turn has been taken."""


class InTurns:
    """Stands in for an experiment's batches: after each chunk of them the others have their turn. Also a callback.

    The first turn warms up and is not counted.
    """

    def __init__(self, batches: TrainingBatches, others: Sequence[Callable[[], None]], chunk: int, turns: int):
        self.rate = Rate()
        self._batches, self._others, self._chunk, self._turns = batches, others, chunk, turns

    def on_start(self, run: Run) -> None:
        self.clock = run.clock

    def from_batch(self, start: int) -> Iterator[Batch]:
        stream = self._batches.from_batch(start)
        clock = self.clock
        for turn in range(self._turns + 1):
            examples, seconds = clock.examples, clock.training_seconds
            yield from itertools.islice(stream, self._chunk)
            # asked for the next batch: all steps are dispatched, and these are the arrays that they make
            jax.block_until_ready(jax.live_arrays())
            if turn:
                self.rate.add(clock.examples - examples, clock.training_seconds - seconds)
            for other in self._others:
                other()
        raise TurnsOverError


def other_turns(call: Callable[[], int], rate: Rate) -> Callable[[], None]:
    """Makes a call that takes one turn of `call`, which returns its number of examples; the first is not counted."""
    warm = False

    def turn() -> None:
        nonlocal warm
        start = time.perf_counter()
        examples = call()
        if warm:
            rate.add(examples, time.perf_counter() - start)
        warm = True

    return turn


def measure_training(config: TrainConfig, chunk: int, turns: int) -> dict[str, Any]:
    task, source = TASKS[config.data.task], config.data.source
    soft_decay = config.svt.function != "none"
    calls: Candidates = {}
    if installed("torch"):
        from benchmarks.torch_training import training_turns

        folder = Path(config.model.path)
        calls = in_own_process(training_turns, folder, source, task.name, soft_decay, BATCH_SIZE, chunk)
    rates = {name: Rate() for name in calls}
    others = [other_turns(call, rates[name]) for name, call in calls.items()]
    with tempfile.TemporaryDirectory() as output:
        experiment = setup(dataclasses.replace(config, run=RunConfig(name="benchmark", output_dir=output)))
        ours = InTurns(experiment.batches, others, chunk, turns)
        experiment.batches = ours  # type: ignore[assignment]
        try:
            train(experiment, [*own_callbacks(experiment, Console(quiet=True)), ours])
            raise AssertionError("the run ended before the turns did")
        except TurnsOverError:
            pass
        rates = {OURS: ours.rate, **rates}
        clock = ours.clock
    return {
        "task": task.name,
        "function": config.svt.function,
        "examples_per_second": {name: rate.total for name, rate in rates.items()},
        "times": {name: rates[OURS].total / rate.total for name, rate in rates.items()},
        "times_turns": {name: float(np.median(rates[OURS].turns / rate.turns)) for name, rate in rates.items()},
        "turns": {name: rate.turns.round(2).tolist() for name, rate in rates.items()},
        "compiles": clock.compiles,
        "compile_time_s": clock.compile_seconds,
    }


def measure_evaluation(config: TrainConfig, repeats: int) -> dict[str, Any]:
    task, model = TASKS[config.data.task], TaskModel.from_config(config)
    tokens = model.tokens("validation")
    evaluator = Evaluator(model, tokens, config.data.eval_batch_size, config.data.layout)
    candidates: Candidates = {OURS: lambda: evaluator.logits(model)}
    if installed("torch"):
        from benchmarks.torch_training import evaluation_calls

        folder, soft_decay = Path(config.model.path), config.svt.function != "none"
        candidates |= in_own_process(evaluation_calls, folder, config.data.source, task.name, soft_decay, BATCH_SIZE)
    seconds = paired(candidates, repeats)
    return {
        "task": task.name,
        "function": config.svt.function,
        "examples_per_second": {name: len(tokens) / float(np.median(values)) for name, values in seconds.items()},
        "times": {name: ratio(seconds, name, OURS) for name in seconds},
        "compiles": evaluator.compiles,
        "compile_time_s": evaluator.compile_seconds,
    }


def rows_of(result: dict[str, Any]) -> list[list[Any]]:
    what = f"{result['task']}, " + ("SVT off" if result["function"] == "none" else result["function"])
    return [
        [
            what,
            name,
            rate,
            "" if name == OURS else result["times"][name],
            "" if name == OURS or "times_turns" not in result else result["times_turns"][name],
            f"{result['compile_time_s']:.3g} ({result['compiles']})" if name == OURS else "",
        ]
        for name, rate in result["examples_per_second"].items()
    ]


HEADER = ["", "", "examples/s", "svt_jax's rate, times", "turns", "compile s (programs)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a BERT with its tokenizer")
    parser.add_argument("--source", required=True, help="folder in the official GLUE layout")
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=["cola", "rte"])
    parser.add_argument("--function", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--layout", choices=["packed", "padded"], default="packed", help="svt_jax's data.layout")
    parser.add_argument("--part", nargs="+", choices=["training", "evaluation"], default=["training", "evaluation"])
    parser.add_argument("--chunk", type=int, default=4, help="batches in a turn of training")
    parser.add_argument("--turns", type=int, default=12, help="turns of training")
    parser.add_argument("--repeats", type=int, default=3, help="turns of evaluation")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py and eval.py do, and PyTorch's processes
    environment_ = environment()
    results: dict[str, list[dict[str, Any]]] = {part: [] for part in arguments.part}
    for task, function in itertools.product(arguments.task, arguments.function):
        config = TrainConfig(
            model=ModelConfig(path=arguments.model),
            svt=SVTConfig(function=function),
            data=DataConfig(task=task, source=arguments.source, layout=arguments.layout, eval_batch_size=BATCH_SIZE),
            optim=OptimConfig(learning_rate=5e-5, batch_size=BATCH_SIZE),
            log=LogConfig(progress=False),
        )
        for part in arguments.part:
            measured = (
                measure_training(config, arguments.chunk, arguments.turns)
                if part == "training"
                else measure_evaluation(config, arguments.repeats)
            )
            results[part].append(measured)
            if arguments.output:
                arguments.output.write_text(json.dumps({"environment": environment_, **results}, indent=1))
    for part, measured_ in results.items():
        print(f"\n{part}")
        print(table(HEADER, [row for result in measured_ for row in rows_of(result)]))
    print("\n" + json.dumps(environment_))


if __name__ == "__main__":
    main()
