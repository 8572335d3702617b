"""Memory and time of a custom task with many made rows: reading, tokenising, planning, the first steps.

    python -m benchmarks.large_data --rows 10000000 --folder /tmp/large

Prints a line of JSON: seconds until the first step, and the largest resident set. File pages, which the system takes
back when it needs room, are counted in it. The file is made once; a second call finds the tokens of the first. The model
is a random encoder of two layers of 96, so that the memory is that of the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np

_WORDS = [
    "the",
    "people",
    "in",
    "house",
    "saw",
    "a",
    "dog",
    "and",
    "cat",
    "while",
    "old",
    "man",
    "walked",
    "down",
    "to",
    "river",
    "with",
    "his",
    "friend",
    "because",
    "it",
    "was",
    "warm",
    "day",
    "she",
    "read",
    "long",
    "book",
    "about",
    "war",
    "peace",
    "they",
    "left",
    "early",
    "after",
    "work",
    "found",
    "new",
    "road",
    "home",
]
_BLOCK = 100_000


def make_rows(path: Path, rows: int) -> None:
    """A .tsv of short sentences, 5 to 16 words each, with two classes."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("text\tlabel\n")
        for start in range(0, rows, _BLOCK):
            number = min(_BLOCK, rows - start)
            lengths, labels = rng.integers(5, 17, number).tolist(), rng.integers(0, 2, number).tolist()
            words = rng.integers(0, len(_WORDS), (number, 16)).tolist()
            for length, label, chosen in zip(lengths, labels, words, strict=True):
                file.write(" ".join([_WORDS[n] for n in chosen[:length]]) + f"\t{label}\n")


def make_model(folder: Path) -> None:
    """A random encoder with a tokenizer of these words."""
    from flax import nnx
    from transformers import BertTokenizer

    from svt_jax import export_hf
    from svt_jax.models.encoder import Encoder
    from svt_jax.run.task_model import DEMO_ENCODER

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*_WORDS})])}
    config = dataclasses.replace(DEMO_ENCODER, vocab_size=len(vocabulary))
    export_hf(Encoder(config, rngs=nnx.Rngs(0)), folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)


def resident() -> dict[str, float]:
    """The process's resident set in GB: the largest so far, and at present that of file pages and of the rest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    numbers = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.startswith(("VmHWM", "Rss"))}
    return {"peak": numbers["VmHWM"], "file": numbers["RssFile"], "anonymous": numbers["RssAnon"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="for the rows, their tokens and the run")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    data = options.folder / f"rows-{options.rows}"
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "train.tsv").is_file():
        make_rows(data / "validation.tsv", 1000)
        make_rows(data / "unfinished", options.rows)
        (data / "unfinished").rename(data / "train.tsv")
    model = options.folder / "model"
    if not model.is_dir():
        make_model(model)
    os.environ["SVT_JAX_CACHE"] = str(options.folder / "tokens")

    import svt_jax
    from svt_jax.host import keep_freed_memory

    keep_freed_memory()  # as the command does
    before, start = resident(), time.perf_counter()
    config = {
        "run": {"name": f"{options.rows}-{time.time_ns()}", "output_dir": str(options.folder / "runs")},
        "model": {"path": str(model)},
        "data": {
            "task": "custom",
            "source": str(data),
            "text_columns": ["text"],
            "label_column": "label",
            "max_length": 64,
        },
        "optim": {"max_steps": options.steps},
    }
    run = svt_jax.train(config)
    found = {
        "rows": options.rows,
        "file_bytes": (data / "train.tsv").stat().st_size,
        "seconds": round(time.perf_counter() - start, 1),
        "time_to_first_step_s": round(run.results["train"]["time_to_first_step_s"], 1),
        "resident_before_gb": before,
        "resident_gb": resident(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
