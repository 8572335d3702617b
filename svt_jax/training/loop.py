"""The training loop: resume, step, log, evaluate, save; stop cleanly on a signal or a number that is not finite."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from svt_jax.data.batching import Batch, TrainingBatches, choose_buckets
from svt_jax.data.glue import Split
from svt_jax.evaluation.glue import Evaluator
from svt_jax.evaluation.metrics import NonFiniteError
from svt_jax.models.heads import Classifier
from svt_jax.training import assemble, run_folder
from svt_jax.training.checkpoint import Checkpoints, abstract
from svt_jax.training.config import TrainConfig
from svt_jax.training.optimizer import learning_rate_schedule, make_optimizer, named_paths
from svt_jax.training.progress import TrainingProgress
from svt_jax.training.sharding import (
    batch_sharding,
    check_batch,
    make_mesh,
    shard_step,
    state_shardings,
)
from svt_jax.training.step import TrainState, make_train_step, split_model

_LAG = 2
"""Steps between dispatch and reading a step's metrics, so that the device never waits for Python."""
_ADVICE = "Lower optim.learning_rate or set optim.grad_clip."


class StoppedBySignalError(Exception):
    """SIGTERM or SIGINT came; the state is saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


@dataclasses.dataclass
class _Clock:
    """Seconds and examples of training alone: compilation, evaluation and waiting for saves are not in it.

    The numbers of a run's earlier processes go in, so that a resumed run reports all of it.
    """

    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    compile_seconds: float = 0.0
    compiles: int = 0
    wall_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._wall_before, self._process_start = self.wall_seconds, time.perf_counter()
        self._start: float | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What runs inside is training."""
        self._start = time.perf_counter()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not training. The device must have finished its steps."""
        self._stop()
        try:
            yield
        finally:
            self._start = time.perf_counter()

    def _stop(self) -> None:
        self.seconds, self._start = self.training_seconds, None

    @property
    def training_seconds(self) -> float:
        return self.seconds + (0.0 if self._start is None else time.perf_counter() - self._start)

    @property
    def examples_per_second(self) -> float:
        return self.examples / max(self.training_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.training_seconds, 1e-9)

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps of it; `_Clock(**numbers)` goes on from there."""
        self.wall_seconds = self._wall_before + time.perf_counter() - self._process_start
        return {**dataclasses.asdict(self), "seconds": self.training_seconds}


class Trainer:
    """One run, from config to results. `run()` does everything; the parts are there for tests and tools."""

    def __init__(self, config: TrainConfig, console: Console | None = None):
        self.config = config
        self.console = console or Console()
        self.folder = run_folder.find_run(config)
        self.mesh = make_mesh(config.mesh)
        self.task = assemble.find_task(config.data)
        rows = config.optim.batch_size * config.optim.accumulate
        check_batch(self.mesh, "optim.batch_size", config.optim.batch_size)
        check_batch(self.mesh, "data.eval_batch_size", config.data.eval_batch_size)
        model = assemble.open_model(config.model.path)
        splits: list[Split] = ["train", *self.task.parts("validation")]
        tokens = {
            split: assemble.load_tokens(self.task, config.data, model.tokenizer, model.encoder, split)
            for split in splits
        }
        train_tokens = tokens.pop("train")
        positions = model.encoder.max_tokens
        buckets = config.data.buckets
        if buckets == "auto":
            buckets = choose_buckets(train_tokens.lengths, rows, longest=positions)
        elif max(buckets) > positions:
            raise ValueError(
                f"data.buckets is {buckets} and the model has {positions} positions. Leave the longer ones out."
            )
        self.batches = TrainingBatches(train_tokens, rows, config.run.seed, sorted(buckets))
        self.num_layers = model.encoder.num_layers
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.num_steps = min(config.optim.epochs * self.steps_per_epoch, config.optim.max_steps or 2**62)

        classifier = assemble.make_classifier(config, model, self.task.num_labels, self.mesh)
        self.graphdef, params, constants = split_model(classifier)
        self.optimizer = make_optimizer(config.optim, self.num_steps)
        self.schedule = learning_rate_schedule(config.optim, self.num_steps)
        self._shardings = state_shardings(params, constants, self.optimizer, self.mesh)
        self._initial = (params, constants)
        self.evaluators = {
            split: Evaluator(self.graphdef, self.task, held_out, config.data.eval_batch_size, positions, self.mesh)
            for split, held_out in tokens.items()
        }
        self._compiled: dict[int, Any] = {}
        self._step = shard_step(
            make_train_step(
                self.graphdef,
                self.optimizer,
                seed=config.run.seed,
                accumulate=config.optim.accumulate,
                regression=self.task.regression,
            ),
            self._shardings,
            self.mesh,
        )
        self._all_finite = jax.jit(
            lambda state: jnp.all(jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state)]))
        )
        self._stop_signal: int | None = None
        # From here on nothing can fail for the config's fault: a wrong one leaves no folder behind.
        manifest = run_folder.make_manifest(config, self.mesh, model.folder, self.task)
        run_folder.create(self.folder, config, manifest, model.encoder, model.tokenizer)
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.checkpoint.keep)

    def run(self) -> dict[str, Any]:
        """Trains to the end, from the newest checkpoint if there is one; returns what results.json holds.

        Raises:
          NonFiniteError: if the loss or a gradient is not finite; the last good checkpoint stays.
          StoppedBySignalError: after SIGTERM or SIGINT, once the state is saved.
        """
        step, state, progress = self._start()
        self.clock = _Clock(**progress["clock"])
        writer = run_folder.MetricsWriter(self.folder, step)
        try:
            with (
                self._stop_on_signals(),
                jax.set_mesh(self.mesh),
                TrainingProgress(self.console, self.num_steps, step, self.config.log.progress) as bar,
                self.clock.running(),
            ):
                progress = self._train(step, state, progress, writer, bar)
        finally:
            writer.close()
            self.checkpoints.close()
        results = self._results(progress)
        run_folder.write_results(self.folder, results)
        return results

    def _start(self) -> tuple[int, TrainState, dict[str, Any]]:
        params, constants = self._initial
        del self._initial  # its buffers will be donated
        optimizer = jax.jit(self.optimizer.init, out_shardings=self._shardings.optimizer)
        if self.checkpoints.steps:
            like = abstract(TrainState(params, constants, jax.eval_shape(optimizer, params)), self._shardings)
            del params, constants  # memory for those that are read
            step, state, progress = self.checkpoints.restore(like)
            self.console.print(f"resuming {self.folder.path} after step {step} of {self.num_steps}", highlight=False)
            return step, state, progress
        return 0, TrainState(params, constants, optimizer(params)), {"clock": {}, "evaluations": []}

    def _train(
        self,
        step: int,
        state: TrainState,
        progress: dict[str, Any],
        writer: run_folder.MetricsWriter,
        bar: TrainingProgress,
    ) -> dict[str, Any]:
        every = self.config.checkpoint.every_steps
        pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
        stream = self.batches.from_batch(step)
        while step < self.num_steps:
            batch = next(stream)
            compiled = self._executable(state, batch, pending, bar)
            state, metrics = compiled(state, self._device_batch(batch), np.int32(step))
            step += 1
            self.clock.examples += int(batch["weights"].sum())
            self.clock.tokens += int(batch["attention_mask"][batch["weights"] > 0].sum())
            pending.append((step, {**metrics, "alpha": self._alphas(state) if self._logs(step) else {}}))
            while len(pending) > _LAG:
                self._read(*pending.popleft(), writer, bar)
            epoch_ends = step % self.steps_per_epoch == 0 or step == self.num_steps
            stopping = self._stop_signal is not None
            if epoch_ends or stopping or (every and step % every == 0):
                while pending:  # before saving: a state that is not finite must not become a checkpoint
                    self._read(*pending.popleft(), writer, bar)
                jax.block_until_ready(state)
                with self.clock.paused():
                    progress = self._evaluate_and_save(step, state, progress, bar, evaluate=epoch_ends)
            if self._stop_signal is not None and stopping and step < self.num_steps:
                self.checkpoints.wait()
                name = signal.Signals(self._stop_signal).name
                raise StoppedBySignalError(
                    f"stopped by {name} after step {step}; the state is saved. Start the same command again to resume.",
                    self._stop_signal,
                )
        with self.clock.paused():
            self.checkpoints.wait()
            return {**progress, "clock": self.clock.numbers()}

    def _evaluate_and_save(
        self, step: int, state: TrainState, progress: dict[str, Any], bar: TrainingProgress, *, evaluate: bool
    ) -> dict[str, Any]:
        score = None
        evaluations = progress["evaluations"]
        if evaluate:
            bar.note("evaluating")
            scores = {split: each.score(state.params, state.constants) for split, each in self.evaluators.items()}
            metrics = scores.pop("validation")
            score = metrics[self.task.metrics[0]]
            evaluations = [*evaluations, {"step": step, "metrics": metrics, **scores}]
            bar.evaluated(step, step / self.steps_per_epoch, metrics)
        bar.note("saving")
        if not self._all_finite(state.params):
            raise NonFiniteError(f"step {step}: a parameter is not finite after it; {self._last_good()}. {_ADVICE}")
        progress = {
            "clock": self.clock.numbers(),
            "evaluations": evaluations,
            "alpha": [float(alpha) for alpha in self._alphas(state).values()],
        }
        self.checkpoints.save(step, state, progress, score)
        bar.note("")
        return progress

    def _executable(self, state: TrainState, batch: Batch, pending: Any, bar: TrainingProgress) -> Any:
        length = batch["input_ids"].shape[1]
        if length not in self._compiled:
            jax.block_until_ready([metrics for _, metrics in pending])
            bar.note(f"compiling for {length} tokens")
            with self.clock.paused():
                start = time.perf_counter()
                lowered = self._step.lower(state, self._device_batch(batch), np.int32(0))
                self._compiled[length] = lowered.compile()
                self.clock.compile_seconds += time.perf_counter() - start
                self.clock.compiles += 1
            bar.note("")
        return self._compiled[length]

    def _device_batch(self, batch: Batch) -> dict[str, jax.Array]:
        return jax.device_put({n: v for n, v in batch.items() if n != "index"}, batch_sharding(self.mesh))

    def _logs(self, step: int) -> bool:
        return step % self.config.log.every_steps == 0 or step == self.num_steps

    def _alphas(self, state: TrainState) -> dict[int, jax.Array]:
        """Alpha by layer, as new buffers: the state's own are donated to the next step."""
        model: Classifier = nnx.merge(self.graphdef, state.params, state.constants)
        return {n: alpha + 0 for n, alpha in model.encoder.alphas.items()}

    def _read(
        self, step: int, metrics: dict[str, Any], writer: run_folder.MetricsWriter, bar: TrainingProgress
    ) -> None:
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(self._non_finite_message(step, loss, np.asarray(metrics["squared_norms"])))
        rate = self.clock.examples_per_second
        bar.update(step, loss, rate)
        if self._logs(step):
            writer.write(
                {
                    "step": step,
                    "epoch": step / self.steps_per_epoch,
                    "loss": loss,
                    "learning_rate": float(self.schedule(step - 1)),
                    "alpha": {str(n): float(alpha) for n, alpha in metrics["alpha"].items()},
                    "grad_norm": grad_norm,
                    "examples_per_second": rate,
                    "tokens_per_second": self.clock.tokens_per_second,
                    "compiles": self.clock.compiles,
                }
            )

    def _non_finite_message(self, step: int, loss: float, squared_norms: np.ndarray) -> str:
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        else:
            names = named_paths(self._shardings.params)
            first = next(
                (n for n, value in zip(names, squared_norms, strict=True) if not math.isfinite(value)), "their norm"
            )
            what = f"the loss is {loss:.4g} and the gradient of {first} is not finite"
        return f"step {step}: {what}; training needs finite numbers, {self._last_good()}. {_ADVICE}"

    def _last_good(self) -> str:
        steps = self.checkpoints.steps
        return f"the checkpoint of step {steps[-1]} is the last good one" if steps else "no checkpoint had been written"

    def _results(self, progress: dict[str, Any]) -> dict[str, Any]:
        last = progress["evaluations"][-1]
        main = self.task.metrics[0]
        # of equal ones the latest, as Orbax keeps it
        best = max(progress["evaluations"], key=lambda e: (e["metrics"][main], e["step"]))
        svt, clock = self.config.svt, progress["clock"]
        layers = list(svt.alpha_by_layer(self.num_layers))
        return {
            "task": self.task.name,
            "steps": self.num_steps,
            "epochs": self.num_steps / self.steps_per_epoch,
            "metrics": {
                split: last["metrics"] if split == "validation" else last[split]
                for split in self.task.parts("validation")
            },
            "best": {"step": best["step"], "metrics": best["metrics"]},
            "evaluations": progress["evaluations"],
            "svt": {"function": svt.function, "layers": layers, "alpha": progress["alpha"]},
            "train": {
                "examples_per_second": clock["examples"] / max(clock["seconds"], 1e-9),
                "wall_time_s": clock["wall_seconds"],
                "compile_time_s": clock["compile_seconds"],
                "compiles": clock["compiles"],
            },
            "device": run_folder.device_description(),
        }

    @contextlib.contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT end the run after the step; a second SIGINT ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals can be handled in the main thread alone
            return

        def note(number: int, _: Any) -> None:
            self._stop_signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
