"""A whole fine-tuning in PyTorch, as a user's script does it: `python -m benchmarks.torch_score`.

Reads weights, tokenises, trains with batches of similar length (group_by_length), AdamW and a linear schedule, evaluates
the validation set sorted by length, and prints the score as one line of JSON. `benchmarks.time_to_score` times the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.torch_training import Data, Training
from svt_jax.data.glue import TASKS, load_examples
from svt_jax.evaluation.metrics import compute_metrics

BATCH_SIZE = 32


def fine_tune(
    model: Path, source: str, name: str, *, soft_decay: bool, epochs: int, max_steps: int | None, seed: int = 0
) -> dict[str, Any]:
    """Returns the last epoch's scores, the number of steps, and the seconds of training and of evaluation."""
    task = TASKS[name]
    examples = load_examples(task, source, "validation")
    assert examples.labels is not None, "a validation set is labelled"
    train, validation = Data(load_examples(task, source, "train"), model), Data(examples, model)
    loader = train.loader(BATCH_SIZE, seed=seed, group_by_length=True)
    num_steps = min(epochs * len(loader), max_steps or 2**62)
    training = Training(model, task, num_steps, seed, soft_decay=soft_decay)
    start = time.perf_counter()
    passes = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    for inputs in itertools.islice(passes, num_steps):
        training.step(inputs)
    trained = time.perf_counter()
    logits = training.logits(validation.sorted(BATCH_SIZE))
    return {
        "metrics": compute_metrics(task.metrics, logits, examples.labels[validation.by_length]),
        "steps": num_steps,
        "train_s": trained - start,
        "evaluate_s": time.perf_counter() - trained,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a BERT with its tokenizer")
    parser.add_argument("--source", required=True, help="folder in the official GLUE layout")
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--soft_decay", action="store_true", help="SoftDecay in the last layer, through torch.svd")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max_steps", type=int, help="stops early, to try it out")
    given = parser.parse_args()
    result = fine_tune(
        given.model,
        given.source,
        given.task,
        soft_decay=given.soft_decay,
        epochs=given.epochs,
        max_steps=given.max_steps,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
