"""How many sentences a second `svt_jax.embed` encodes, beside sentence-transformers: `python -m benchmarks.encode`.

    python -m benchmarks.encode --model FOLDER --data FOLDER

Both encode the distinct sentences of an STS folder (or every n-th of them, --every n) in turns on the same cores, each
in its process, tokenisation included: sentence-transformers in batches of 32 (its default) and 256, ours with one
pooling and with three from one pass. Compilation is timed apart: it is the first call, with an empty compilation cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Candidates, environment, in_own_process, installed, paired, ratio, table, torch_device
from svt_jax.data.tokenizer import load_tokenizer
from svt_jax.embeddings.embed import Pooling, encode, tokenize_sentences
from svt_jax.embeddings.sts import distinct_sentences
from svt_jax.embeddings.sts_files import load_sts
from svt_jax.host import keep_freed_memory
from svt_jax.models.hf import load_encoder

MAX_LENGTH = 128
OURS = {"svt_jax, mean": ("mean",), "svt_jax, mean + cls + first_last": ("mean", "cls", "first_last")}


def our_candidates(folder: Path, sentences: list[str]) -> tuple[Candidates, dict[str, float]]:
    """Returns encoders by name, and the seconds of each one's first call, which compiles."""
    encoder = load_encoder(folder)
    tokenizer = load_tokenizer(folder, encoder.config.vocab_size)
    candidates: Candidates = {}
    first_call = {}
    for name, words in OURS.items():
        poolings = [Pooling.parse(word, encoder.config.num_layers) for word in words]

        def run(poolings: list[Pooling] = poolings) -> Any:
            return list(encode(encoder, tokenize_sentences(sentences, tokenizer, MAX_LENGTH), poolings).values())

        start = time.perf_counter()
        run()
        first_call[name] = time.perf_counter() - start
        candidates[name] = run
    return candidates, first_call


def other_candidates(folder: Path, sentences: list[str]) -> Candidates:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=torch_device())
    model.max_seq_length = MAX_LENGTH

    def call(size: int) -> Callable[[], Any]:
        return lambda: model.encode(sentences, batch_size=size)

    return {f"sentence-transformers, batch {size}": call(size) for size in (32, 256)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder with tasks.json and its files")
    parser.add_argument("--every", type=int, default=4, help="takes each n-th sentence only")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each candidate")
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py and eval.py do, and the other library's process
    sentences = distinct_sentences(load_sts(arguments.data))[:: arguments.every]
    others = in_own_process(other_candidates, arguments.model, sentences) if installed("sentence_transformers") else {}
    ours, first_call = our_candidates(arguments.model, sentences)
    seconds = paired({**others, **ours}, arguments.repeats)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    fastest = min(others, key=medians.__getitem__, default="")
    times = {name: ratio(seconds, fastest, name) if fastest else "" for name in medians}
    rows = [
        [name, median, len(sentences) / median, times[name], first_call.get(name, "")]
        for name, median in medians.items()
    ]
    print(f"{len(sentences)} distinct sentences, {arguments.repeats} turns")
    print(table(["", "median s", "sentences/s", f"times {fastest or 'the other'}", "first call s"], rows))
    print("\n" + json.dumps({"environment": environment(), "sentences": len(sentences), "median_s": medians}))


if __name__ == "__main__":
    main()
