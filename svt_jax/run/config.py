"""The config of a training run: one frozen dataclass per section. A file holds only what differs from the defaults."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from svt_jax.models.config import MODEL_KEYS_OF_SPEED
from svt_jax.models.hf import DTYPES
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config_values import expand_home, positive
from svt_jax.run.data_config import LAYOUTS, DataConfig
from svt_jax.run.plugin import absolute
from svt_jax.text import printable

_LONGEST_NAME = 200
"""Bytes: a file system allows 255, and checkpoints and their neighbours temporarily have longer names."""


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and its seed.

    Attributes:
        name: Folder of this run inside output_dir; null makes a name from task, model, function and seed.
        output_dir: Folder of all runs; may lie in a bucket, gs://bucket/runs or s3://bucket/runs.
        seed: Decides the head's initialisation, the order of examples, and dropout.
        max_svt_failures: How often the remedy may fail, which skips it for an example and layer, before the run stops.
        plugin: Module or .py file that registers functions and remedies of your own; the same as --plugin. Commands that
            read the run load it too.
    """

    name: str | None = None
    output_dir: str = "runs"
    seed: int = 0
    max_svt_failures: int = 100
    plugin: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "output_dir")
        if self.plugin is not None:
            object.__setattr__(self, "plugin", absolute(self.plugin))
        name = self.name
        if name is not None and (
            name.strip() in ("", ".", "..")
            or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME
            or any(each in "/\\" or unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name)
        ):
            raise ValueError(
                f"run.name is {printable(repr(name))}; allowed is a folder's name inside run.output_dir: at most {_LONGEST_NAME} "
                "bytes, without separators and control characters. Choose another, and run.output_dir for the place."
            )
        if self.max_svt_failures < 0:
            raise ValueError(f"run.max_svt_failures is {self.max_svt_failures}; it must be at least 0. Correct it.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"run.seed is {self.seed}; it must lie in [0, 2^31). Choose another seed.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pretrained model.

    Attributes:
        path: Folder with config.json, model.safetensors and a tokenizer, here or in a bucket, or a hub id; demo is a
            small random encoder.
        dtype: Type of the computation, float32 or bfloat16. Parameters, SVT and losses are float32.
        remat: Compute each layer's inner values again for the gradient instead of keeping them. This saves memory and
            costs another forward pass; an SVT's decomposition is kept.
        scan_layers: Compile consecutive layers without SVT as one loop: 12 layers compile in half to three
            quarters of the time, and run a tenth slower on a CPU. null does so on GPUs and TPUs.
    """

    path: str = "demo"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    scan_layers: bool | None = None

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}.")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: Peak rate.
        svt_learning_rate: Peak rate of the spectral function's parameters; null means learning_rate. They are trained
            as unbounded numbers: near -0.2, alpha moves 0.16 times as far as its trained logit.
        batch_size: Examples in a micro-batch.
        accumulate: Micro-batches in a step; a step sees batch_size * accumulate examples.
        epochs: Passes over the training data.
        max_steps: Stop after this many steps even if epochs are left; the schedule ends there.
        weight_decay: Decoupled decay; not applied to biases, norms and the spectral function's parameters.
        warmup_ratio: Share of the steps in which the rate rises from 0.
        schedule: How the rate changes after warm-up: linear or cosine to 0, or constant.
        grad_clip: Largest global gradient norm; null does not clip.
        stop_after_worse: Stop after this many consecutive evaluations without a better score; null trains to the end.
    """

    learning_rate: float = 2.0e-5
    svt_learning_rate: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    epochs: int = 3
    max_steps: int | None = None
    weight_decay: float = 0.0
    warmup_ratio: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    grad_clip: float | None = None
    stop_after_worse: int | None = None

    def __post_init__(self) -> None:
        positive(
            "optim",
            self,
            "learning_rate",
            "batch_size",
            "accumulate",
            "epochs",
            "max_steps",
            "grad_clip",
            "stop_after_worse",
        )
        if self.svt_learning_rate is not None and not 0 <= self.svt_learning_rate < math.inf:
            raise ValueError(
                f"optim.svt_learning_rate is {self.svt_learning_rate}; it must be at least 0, or null. Correct it."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay is {self.weight_decay}; it must be at least 0. Correct it.")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"optim.warmup_ratio is {self.warmup_ratio}; it must lie in [0, 1). Correct it.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; one of them may be -1, which takes the remaining devices.

    Attributes:
        data: Number of copies of the model; the batch is divided among them.
        fsdp: Number of devices that share each copy's parameters; the batch is also divided among them.
        tensor: Number of devices that share each matrix product.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        if list(sizes.values()).count(-1) > 1 or any(size != -1 and size < 1 for size in sizes.values()):
            raise ValueError(f"mesh is {sizes}; sizes must be positive, and at most one may be -1. Correct the config.")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run, if JAX does not find them itself (it does on TPU slices and under SLURM).

    Attributes:
        coordinator: Address of process 0, host:port; null is for one process, or for a cluster that JAX knows.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        if len({value is None for value in values.values()}) > 1:
            raise ValueError(f"distributed is {values}; allowed are all three keys, or none. Add what is missing.")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"distributed.coordinator is {self.coordinator!r}; allowed is host:port. Correct it.")
        if self.num_processes is not None and not 0 <= (self.process_id or 0) < self.num_processes:
            raise ValueError(
                f"distributed.process_id is {self.process_id} of {self.num_processes} processes; allowed are 0 to "
                "num_processes - 1. Correct them."
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When state is saved, and how many checkpoints are kept.

    Attributes:
        every_steps: Also save after this many steps; each evaluation saves anyway.
        keep: Number of newest checkpoints to keep; the best one is also kept.
        resume: auto continues from the newest checkpoint in the run's folder; never makes an existing one an error.
    """

    every_steps: int | None = None
    keep: int = 2
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        positive("checkpoint", self, "every_steps", "keep")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run logs and shows.

    Attributes:
        every_steps: Steps between lines of metrics.jsonl.
        evaluate_every_steps: Steps between evaluations, each with a checkpoint; null evaluates after each epoch. The
            last step is always evaluated.
        spectrum_every_steps: Steps between readings of the probe in spectrum.jsonl, the first before training; null
            reads it only after the last step. A reading costs about a step, so 100 adds 1 % to training.
        tensorboard: Also write events to the run's folder tensorboard/; needs the package tensorboardX.
        wandb: Also send the numbers to Weights & Biases; needs the package wandb, whose environment variables apply.
        progress: Show a progress bar; without a terminal, print a line each minute.
        profile_steps: Trace these steps, first:last as in 10:15, into the run's folder profile/ for TensorBoard and
            Perfetto. null traces none.
        memory: Also log the memory in use: the fullest device's, or on CPUs the process's resident set.
    """

    every_steps: int = 10
    evaluate_every_steps: int | None = None
    spectrum_every_steps: int | None = None
    tensorboard: bool = False
    wandb: bool = False
    progress: bool = True
    profile_steps: str | None = None
    memory: bool = False

    def __post_init__(self) -> None:
        positive("log", self, "every_steps", "evaluate_every_steps", "spectrum_every_steps")
        found = re.fullmatch(r"(\d+):(\d+)", "1:1" if self.profile_steps is None else self.profile_steps)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"log.profile_steps is {printable(repr(self.profile_steps))}; allowed are two steps from 1, first:last, as "
                "in '10:15', or null. Correct it."
            )

    @property
    def traced_steps(self) -> tuple[int, int] | None:
        """The first and the last step of `profile_steps`."""
        if self.profile_steps is None:
            return None
        first, last = self.profile_steps.split(":")
        return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    svt: SVTConfig = dataclasses.field(default_factory=SVTConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if (self.model.path == "demo") != (self.data.task == "demo"):
            raise ValueError(
                f"model.path is {self.model.path!r} and data.task is {self.data.task!r}: the demo model's tokenizer knows "
                "only the demo task's words. Set both to demo, or neither."
            )
        if self.svt.enabled and not self.svt.mask_padding and self.data.layout == "packed":
            raise ValueError(
                "svt.mask_padding is false and data.layout is packed, where no example has padding; allowed is false with "
                "the padded layout. Set data.layout to padded."
            )

    def without_effect(self) -> list[str]:
        """A sentence for each setting that differs from its default but has no effect with the other keys.

        Example:
          >>> TrainConfig(svt=SVTConfig(alpha=-0.5)).without_effect()
          ['svt.alpha does nothing, for svt.function is none. Name a function, or leave it out.']
        """
        found = self.svt.without_effect()
        if self.svt.function == "none" and self.run.max_svt_failures != RunConfig().max_svt_failures:
            found.append("run.max_svt_failures does nothing, for svt.function is none. Leave it out.")
        if not self.svt.trains and self.optim.svt_learning_rate is not None:
            found.append(
                f"optim.svt_learning_rate does nothing, for svt.function {self.svt.function} has no parameters that are "
                "trained here. Leave it out."
            )
        defaults = DataConfig()
        for layout, keys in LAYOUTS.items():
            for key in keys:
                if layout != self.data.layout and getattr(self.data, key) != getattr(defaults, key):
                    found.append(
                        f"data.{key} does nothing, for data.layout is {self.data.layout}. Set it to {layout}, or leave "
                        f"data.{key} out."
                    )
        if self.data.task == "demo" and self.data.source != DataConfig().source:
            found.append("data.source does nothing, for the task demo makes its own examples. Leave it out.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as in a YAML file."""
        return _lists(dataclasses.asdict(self))


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that determines the result, by dotted key: configs with the same identity are the same run.

    A key without a value (null) is left out, so a config of an earlier version, which did not have the key, is the same.

    Args:
      values: a whole config as nested plain values.

    Example:
      >>> identity(TrainConfig().to_dict())["optim.epochs"]
      3
    """
    found = {
        f"{section}.{key}": value
        for section in ("model", "svt", "data", "optim")
        for key, value in values[section].items()
        if not (section == "model" and key in MODEL_KEYS_OF_SPEED)
    }
    found["seed"] = values["run"]["seed"]
    layout = found.setdefault("data.layout", "padded")  # earlier versions had only this one
    for other, keys in LAYOUTS.items():
        for key in keys if other != layout else ():
            found.pop(f"data.{key}", None)
    if values["optim"].get("stop_after_worse") is not None:  # then the evaluations decide where the run ends
        found["log.evaluate_every_steps"] = values["log"].get("evaluate_every_steps")
    if found.get("svt.site") == SVTConfig.site:  # the only one of earlier versions
        del found["svt.site"]
    params = found.pop("svt.params", None) or {}
    found |= {f"svt.params.{name}": value for name, value in params.items()}
    return {key: value for key, value in found.items() if value is not None}
