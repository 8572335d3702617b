"""A run's results at its end, and the choice of its best evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from svt_jax.data.glue import Task
from svt_jax.run.manifest import device_description
from svt_jax.training.setup import Experiment

if TYPE_CHECKING:
    from svt_jax.training.session import Run


def best_evaluation(task: Task, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the best score in the task's first metric; the latest of equal ones."""
    return max(evaluations, key=lambda each: (each["metrics"][task.metrics[0]], each["step"]))


def worse_in_a_row(task: Task, evaluations: Sequence[dict[str, Any]]) -> int:
    """Number of evaluations since the first one with the best score.

    Example:
      >>> from svt_jax.data.demo import TASK
      >>> scores = [0.5, 0.75, 0.625, 0.75]
      >>> worse_in_a_row(TASK, [{"step": n, "metrics": {"accuracy": score}} for n, score in enumerate(scores)])
      2
    """
    scores = [each["metrics"][task.metrics[0]] for each in evaluations]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def make_results(experiment: Experiment, run: Run) -> dict[str, Any]:
    """What results.json holds."""
    task, clock = experiment.model.task, run.clock.numbers()
    assert task is not None
    last, best = run.evaluations[-1], best_evaluation(task, run.evaluations)
    svt = run.config.svt
    return {
        "task": task.name,
        "steps": run.step,
        "epochs": run.step / experiment.steps_per_epoch,
        "metrics": {
            split: last["metrics"] if split == "validation" else last[split] for split in task.parts("validation")
        },
        "best": {"step": best["step"], "metrics": best["metrics"]},
        "evaluations": run.evaluations,
        "svt": {
            "function": svt.function,
            "site": svt.site,
            "layers": list(svt.alpha_by_layer(experiment.model.encoder.num_layers)),
            "alpha": [by_name["alpha"] for by_name in run.svt.values() if "alpha" in by_name],
            "parameters": {
                layer: {name: {"first": run.first_svt[layer][name], "last": value} for name, value in by_name.items()}
                for layer, by_name in run.svt.items()
            },
        },
        "train": {
            "examples_per_second": clock["examples"] / max(clock["seconds"], 1e-9),
            "wall_time_s": clock["wall_seconds"],
            "time_to_first_step_s": clock["first_step_seconds"],
            "compile_time_s": clock["compile_seconds"],
            "compiles": clock["compiles"],
            "padding_share": run.clock.padding_share,
        },
        "evaluation": {  # this process only: what a resumed run's earlier ones compiled is not counted
            "compile_time_s": sum(each.compile_seconds for each in experiment.evaluators.values()),
            "compiles": sum(each.compiles for each in experiment.evaluators.values()),
        },
        "device": device_description(),
        "platform": {
            "name": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
    }
