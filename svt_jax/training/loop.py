"""The training loop: resume, step, log, evaluate, save; stop cleanly on a signal or a number that is not finite."""

from __future__ import annotations

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from svt_jax.data.batching import Batch, TrainingBatches, training_buckets
from svt_jax.data.glue import Split
from svt_jax.data.shards import global_batch, rows_here
from svt_jax.evaluation.glue import Evaluator
from svt_jax.evaluation.metrics import NonFiniteError
from svt_jax.evaluation.probe import Probe
from svt_jax.models.svt_layer import plain_parameters
from svt_jax.training import assemble, processes, run_folder
from svt_jax.training.checkpoint import Checkpoints, abstract
from svt_jax.training.clock import Clock
from svt_jax.training.config import TrainConfig
from svt_jax.training.optimizer import learning_rate_schedule, make_optimizer, named_paths
from svt_jax.training.progress import TrainingProgress
from svt_jax.training.readout import ADVICE, Readout
from svt_jax.training.records import Records, check_tensorboard
from svt_jax.training.sharding import (
    batch_sharding,
    check_batch,
    make_mesh,
    shard_step,
    state_shardings,
)
from svt_jax.training.signals import StoppedBySignalError, StopSignals
from svt_jax.training.step import TrainState, make_train_step, split_model
from svt_jax.training.word_rows import trained_part, trained_rows


class Trainer:
    """One run, from config to results. `run()` does everything; the parts are there for tests and tools."""

    def __init__(self, config: TrainConfig, console: Console | None = None):
        self.config = config
        self.console = console or Console()
        self.folder = run_folder.run_path(config)
        processes.on_first(run_folder.find_run, config)
        self.mesh = make_mesh(config.mesh)
        self.task = assemble.find_task(config.data)
        rows = config.optim.batch_size * config.optim.accumulate
        check_batch(self.mesh, "optim.batch_size", config.optim.batch_size)
        check_batch(self.mesh, "data.eval_batch_size", config.data.eval_batch_size)
        check_tensorboard(config.log)
        model = assemble.open_model(config.model.path)
        splits: list[Split] = ["train", *self.task.parts("validation")]
        tokens = {
            split: assemble.load_tokens(self.task, config.data, model.tokenizer, model.encoder, split)
            for split in splits
        }
        train_tokens = tokens.pop("train")
        positions = model.encoder.max_tokens
        buckets, grouped = config.data.buckets, config.data.group_by_length
        self.steps_per_epoch = -(-len(train_tokens) // rows)
        self.num_steps = min(config.optim.epochs * self.steps_per_epoch, config.optim.max_steps or 2**62)
        if buckets == "auto":
            buckets = training_buckets(
                train_tokens.lengths, rows, self.num_steps, model.encoder.hidden_size,
                group_by_length=grouped, longest=positions,
            )  # fmt: skip
        elif max(buckets) > positions:
            raise ValueError(
                f"data.buckets is {buckets} and the model has {positions} positions. Leave the longer ones out."
            )
        self._batch_sharding = batch_sharding(self.mesh)
        part = rows_here(self._batch_sharding, rows)
        self.batches = TrainingBatches(
            train_tokens, rows, config.run.seed, sorted(buckets), part, group_by_length=grouped
        )
        self._num_rows, self._lengths = rows, train_tokens.lengths
        self.num_layers = model.encoder.num_layers

        classifier = assemble.make_classifier(config, model, self.task.num_labels, self.mesh)
        self.graphdef, params, constants = split_model(classifier)
        self.optimizer = make_optimizer(config.optim, self.num_steps)
        self._rows = trained_rows(train_tokens, model.encoder, config.optim)
        self.schedule = learning_rate_schedule(config.optim, self.num_steps)
        self._shardings = state_shardings(params, constants, self.optimizer, self.mesh)
        self._initial = (params, constants)
        self.evaluators = {
            split: Evaluator(self.graphdef, self.task, held_out, config.data.eval_batch_size, positions, self.mesh)
            for split, held_out in tokens.items()
        }
        self.probe = Probe(self.graphdef, tokens["validation"], positions, self.mesh)
        self._compiled: dict[int, Any] = {}
        self._step = shard_step(
            make_train_step(
                self.graphdef,
                self.optimizer,
                accumulate=config.optim.accumulate,
                regression=self.task.regression,
                rows=self._rows,
            ),
            self._shardings,
            self.mesh,
        )
        self._all_finite = jax.jit(
            lambda state: jnp.all(jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state)]))
        )
        # From here on nothing can fail for the config's fault: a wrong one leaves no folder behind.
        manifest = run_folder.make_manifest(
            config, self.mesh, model.folder, self.task, {"train": train_tokens, **tokens}
        )
        self._lock = processes.on_first(
            run_folder.create, self.folder, config, manifest, model.encoder, model.tokenizer
        )
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.checkpoint.keep)

    def run(self) -> dict[str, Any]:
        """Trains to the end, from the newest checkpoint if there is one; returns what results.json holds.

        Raises:
          NonFiniteError: if the loss or a gradient is not finite; the last good checkpoint stays.
          StoppedBySignalError: after SIGTERM or SIGINT, once the state is saved.
          OSError: if the folder cannot be written any more; the last checkpoint stays.
        """
        step, state, progress = self._start()
        self.clock = Clock(**progress["clock"])
        self.records = Records(self.folder, step, tensorboard=self.config.log.tensorboard, writes=processes.is_first())
        try:
            with (
                StopSignals() as signals,
                jax.set_mesh(self.mesh),
                TrainingProgress(self.console, self.num_steps, step, self.config.log.progress) as bar,
                self.clock.running(),
            ):
                progress = self._train(step, state, progress, signals, self._readout(bar), bar)
            results = self._results(progress)
            processes.on_first(run_folder.write_results, self.folder, results)
        finally:
            self.records.close()
            self.checkpoints.close()
            if self._lock is not None:
                self._lock.release()
        return results

    def _start(self) -> tuple[int, TrainState, dict[str, Any]]:
        params, constants = self._initial
        del self._initial  # its buffers will be donated
        encoder = nnx.merge(self.graphdef, params, constants).encoder
        first = plain_parameters(encoder.svt_parameters)
        start: dict[str, Any] = {"clock": {}, "evaluations": [], "first_svt": first}
        optimizer = jax.jit(
            lambda params: self.optimizer.init(trained_part(params, self._rows)),
            out_shardings=self._shardings.optimizer,
        )
        if self.checkpoints.steps:
            like = abstract(TrainState(params, constants, jax.eval_shape(optimizer, params)), self._shardings)
            del params, constants  # memory for those that are read
            step, state, progress = self.checkpoints.restore(like)
            self.console.print(
                f"resuming {self.folder.path} after step {step} of {self.num_steps}", highlight=False, soft_wrap=True
            )
            return step, state, {**start, "svt": plain_parameters(self._svt(state)["svt"]), **progress}
        return 0, TrainState(params, constants, optimizer(params)), start

    def _readout(self, bar: TrainingProgress) -> Readout:
        return Readout(
            self.records,
            bar,
            self.clock,
            schedule=self.schedule,
            steps_per_epoch=self.steps_per_epoch,
            logs=self._logs,
            parameter_names=named_paths(self._shardings.params),
            last_good=self._last_good,
            max_svt_failures=self.config.run.max_svt_failures,
        )

    def _train(
        self,
        step: int,
        state: TrainState,
        progress: dict[str, Any],
        signals: StopSignals,
        readout: Readout,
        bar: TrainingProgress,
    ) -> dict[str, Any]:
        save_every, measure_every = self.config.checkpoint.every_steps, self.config.log.spectrum_every_steps
        if measure_every and step == 0:
            jax.block_until_ready(state)
            with self.clock.paused():
                self._read_spectrum(step, state, bar)
        stream = self.batches.from_batch(step)
        while step < self.num_steps:
            batch = next(stream)
            compiled = self._executable(state, batch, readout, bar)
            state, metrics = compiled(state, *self._inputs(batch, step))
            step += 1
            real = batch["index"][batch["weights"] > 0]
            self.clock.examples += len(real)
            self.clock.tokens += int(self._lengths[real].sum())
            readout.add(step, {**metrics, **(self._svt(state) if self._logs(step) else {"alpha": {}, "svt": {}})})
            stopped_by = signals.stops_after(step)
            epoch_ends = step % self.steps_per_epoch == 0 or step == self.num_steps
            measures = step == self.num_steps or bool(measure_every and step % measure_every == 0)
            saves = epoch_ends or stopped_by is not None or bool(save_every and step % save_every == 0)
            if measures or saves:
                readout.read_all()
                jax.block_until_ready(state)
                with self.clock.paused():
                    self._check_finite(step, state)  # or it has no score, no spectrum, and must not become a checkpoint
                    if epoch_ends:
                        progress = {
                            **progress,
                            "evaluations": self._evaluate(step, state, progress["evaluations"], bar),
                        }
                    if measures:
                        self._read_spectrum(step, state, bar)  # before saving: a resumed run has those up to its step
                    if saves:
                        progress = self._save(step, state, progress, bar)
            if stopped_by is not None and step < self.num_steps:
                self.checkpoints.wait()
                raise StoppedBySignalError(
                    f"stopped by {signal.Signals(stopped_by).name} after step {step}; the state is saved. "
                    "Start the same command again to resume.",
                    stopped_by,
                )
        with self.clock.paused():
            self.checkpoints.wait()
            return {**progress, "clock": self.clock.numbers()}

    def _read_spectrum(self, step: int, state: TrainState, bar: TrainingProgress) -> None:
        bar.note("measuring spectra")
        self.records.spectrum(step, self.probe.read(state.params, state.constants))
        bar.note("")

    def _check_finite(self, step: int, state: TrainState) -> None:
        """Loss and gradient are of the parameters before the step, and may have been finite."""
        if not self._all_finite(state.params):
            raise NonFiniteError(f"step {step}: a parameter is not finite after it; {self._last_good()}. {ADVICE}")

    def _evaluate(
        self, step: int, state: TrainState, evaluations: list[dict[str, Any]], bar: TrainingProgress
    ) -> list[dict[str, Any]]:
        """The evaluations so far and that of this step."""
        bar.note("evaluating")
        try:
            scores = {split: each.score(state.params, state.constants) for split, each in self.evaluators.items()}
        except NonFiniteError as error:  # of parameters that are finite, and huge
            raise NonFiniteError(f"step {step}: {error}; {self._last_good()}. {ADVICE}") from error
        self.records.evaluation(step, scores)
        metrics = scores.pop("validation")
        bar.evaluated(step, step / self.steps_per_epoch, metrics)
        bar.note("")
        return [*evaluations, {"step": step, "metrics": metrics, **scores}]

    def _save(self, step: int, state: TrainState, progress: dict[str, Any], bar: TrainingProgress) -> dict[str, Any]:
        bar.note("saving")
        evaluations, svt = progress["evaluations"], self._svt(state)
        progress = {
            **progress,
            "clock": self.clock.numbers(),
            "alpha": [float(alpha) for alpha in svt["alpha"].values()],
            "svt": plain_parameters(svt["svt"]),
        }
        self.checkpoints.save(step, state, progress, self._best(evaluations)["step"] if evaluations else None)
        bar.note("")
        return progress

    def _executable(self, state: TrainState, batch: Batch, readout: Readout, bar: TrainingProgress) -> Any:
        length = batch["input_ids"].shape[1]
        if length not in self._compiled:
            readout.wait()
            bar.note(f"compiling for {length} tokens")
            with self.clock.compiling():
                self._compiled[length] = self._step.lower(state, *self._inputs(batch, 0)).compile()
            bar.note("")
        return self._compiled[length]

    def _inputs(self, batch: Batch, step: int) -> tuple[dict[str, jax.Array], np.int32, np.int32]:
        """What the step gets beside the state. The seed is among it: all seeds run one compiled program."""
        arrays = {n: v for n, v in batch.items() if n != "index"}
        batch_there = global_batch(arrays, self._batch_sharding, self._num_rows)
        return batch_there, np.int32(self.config.run.seed), np.int32(step)

    def _logs(self, step: int) -> bool:
        return step % self.config.log.every_steps == 0 or step == self.num_steps

    def _svt(self, state: TrainState) -> dict[str, Any]:
        """Alpha by layer, every parameter by layer and name; as new buffers: the state's own are donated to the next step."""
        encoder = nnx.merge(self.graphdef, state.params, state.constants).encoder
        return jax.tree.map(lambda value: value + 0, {"alpha": encoder.alphas, "svt": encoder.svt_parameters})

    def _last_good(self) -> str:
        steps = self.checkpoints.steps
        return f"the checkpoint of step {steps[-1]} is the last good one" if steps else "no checkpoint had been written"

    def _best(self, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
        """Of equal ones the latest."""
        return max(evaluations, key=lambda e: (e["metrics"][self.task.metrics[0]], e["step"]))

    def _results(self, progress: dict[str, Any]) -> dict[str, Any]:
        last, best = progress["evaluations"][-1], self._best(progress["evaluations"])
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
            "svt": {
                "function": svt.function,
                "layers": layers,
                "alpha": progress["alpha"],
                "parameters": {
                    layer: {name: {"first": first[name], "last": last} for name, last in by_name.items()}
                    for (layer, by_name), first in zip(
                        progress["svt"].items(), progress["first_svt"].values(), strict=True
                    )
                },
            },
            "train": {
                "examples_per_second": clock["examples"] / max(clock["seconds"], 1e-9),
                "wall_time_s": clock["wall_seconds"],
                "compile_time_s": clock["compile_seconds"],
                "compiles": clock["compiles"],
            },
            "evaluation": {  # of this process; what a resumed run's earlier ones compiled is not in it
                "compile_time_s": sum(each.compile_seconds for each in self.evaluators.values()),
                "compiles": sum(each.compiles for each in self.evaluators.values()),
            },
            "device": run_folder.device_description(),
        }
