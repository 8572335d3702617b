"""Scores of a plain PyTorch fine-tuning loop, to compare with svt_jax's: `python -m benchmarks.glue_scores`.

    python -m benchmarks.glue_scores --model FOLDER --source GLUE_FOLDER --task cola --task rte --seed 0 1 2 --output FOLDER

One JSON file for each task, variant (plain, soft_decay) and seed, with GLUE's metrics on the validation set after each
epoch. A file that exists is left as it is, so that a stopped grid goes on. The loop is that of
`benchmarks.torch_training`: batch 32, AdamW at 5e-5 linear to 0, 3 epochs, 128 tokens, padding to a multiple of 8.
SoftDecay of real tokens acts before the last layer's norm, with alpha -0.2, trained at the same rate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import environment, torch_device
from benchmarks.torch_training import Data, Training
from svt_jax.data.glue import TASKS, load_examples
from svt_jax.evaluation.metrics import compute_metrics

VARIANTS = ("plain", "soft_decay")
BATCH_SIZE = 32
EPOCHS = 3


def fine_tune(
    model: Path, source: str, name: str, variant: str, seed: int, max_steps: int | None = None
) -> dict[str, Any]:
    """Fine-tunes from one seed, and returns what the JSON file holds."""
    task = TASKS[name]
    examples = load_examples(task, source, "validation")
    assert examples.labels is not None, "a validation set is labelled"
    train, validation = Data(load_examples(task, source, "train"), model), Data(examples, model)
    loader = train.loader(BATCH_SIZE, seed=seed)
    num_steps = min(EPOCHS * len(loader), max_steps or 2**62)
    training = Training(model, task, num_steps, seed, soft_decay=variant == "soft_decay", device=torch_device())
    evaluations, seconds, seen, step = [], 0.0, 0, 0
    while step < num_steps:
        start = time.perf_counter()
        for inputs in itertools.islice(loader, num_steps - step):
            loss = training.step(inputs)
            seen, step = seen + len(inputs["labels"]), step + 1
        seconds += time.perf_counter() - start
        logits = training.logits(validation.loader(BATCH_SIZE))
        evaluations.append(
            {"step": step, "loss": loss, "metrics": compute_metrics(task.metrics, logits, examples.labels)}
        )
    return {
        "task": name,
        "variant": variant,
        "seed": seed,
        "steps": step,
        "metrics": evaluations[-1]["metrics"],
        "evaluations": evaluations,
        "alpha": training.alpha,
        "train": {"examples_per_second": seen / seconds, "seconds": seconds, "threads": torch.get_num_threads()},
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a BERT with its tokenizer")
    parser.add_argument("--source", required=True, help="folder in the official GLUE layout")
    parser.add_argument("--task", action="append", choices=list(TASKS), required=True)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: both")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="stops early, to try it out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for task, seed, variant in itertools.product(arguments.task, arguments.seed, arguments.variant or VARIANTS):
        path = arguments.output / f"{task}-{variant}-{seed}.json"
        if path.exists():
            print(f"{path} is there already")
            continue
        result = fine_tune(arguments.model, arguments.source, task, variant, seed, arguments.max_steps)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(result, indent=1))
        os.replace(unfinished, path)
        print(f"{path}: {result['metrics']}, {result['train']['examples_per_second']:.1f} examples/s", flush=True)


if __name__ == "__main__":
    main()
