"""`eval sts`: scores sentence embeddings on semantic textual similarity, without training."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Literal

from svt_jax.cli.options import NO_ROOM, eval_parser, output_file, path, read_options, show

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

log = logging.getLogger(__name__)


def options() -> ArgumentParser:
    from svt_jax.embeddings.sts_maps import PostProcessing

    parser = eval_parser(
        "sts",
        "Scores sentence embeddings on semantic textual similarity, without training. docs/sts.md says where the data are from.",
        needed="--model PATH --data DIR --output FILE",
        examples=(
            "--model MODEL --data STS --output plain.json",
            "--model MODEL --data STS --post none soft_decay whitening --pooling mean cls --output all.json",
            "--model MODEL --data STS --protocol honest --fit corpus.txt --post soft_decay --output honest.json",
        ),
    )
    inputs = parser.add_argument_group("what is read")
    what = parser.add_argument_group("what is computed")
    output = parser.add_argument_group("what is written")
    inputs.add_argument("--config", help="YAML file of the options below; those on the command line override it")
    inputs.add_argument("--model", type=path, help="folder or hub id of an encoder, with a tokenizer")
    inputs.add_argument("--data", type=path, help="folder with tasks.json and its files")
    what.add_argument(
        "--protocol", default="paper", type=Literal["paper", "honest"], help="what --post is fitted on (default paper)"
    )
    what.add_argument("--pooling", nargs="+", default=["mean"], help="mean, cls, first_last, or layers as in mean:1,-1")
    what.add_argument("--post", nargs="+", default=["none"], help="none, soft_decay, centered_soft_decay, whitening")
    what.add_argument("--alpha", type=float, help=f"for soft_decay (default {PostProcessing.alpha})")
    what.add_argument("--dim", type=int, help="directions that whitening keeps (default all)")
    inputs.add_argument(
        "--fit", type=path, help="sentences to fit on with --protocol honest: .txt, .tsv, .csv or .jsonl"
    )
    output.add_argument("--embeddings", type=path, help="file that keeps the embeddings for the next time")
    inputs.add_argument("--max_length", type=int, default=128, help="tokens of a sentence (default 128)")
    output.add_argument("--output", type=path, help="JSON file: a table, or a list for several poolings or --post")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("model", "data", "output"))

    from svt_jax.embeddings.sts import evaluate_sts
    from svt_jax.embeddings.sts_maps import PostProcessing
    from svt_jax.embeddings.sts_tables import analysis_table, score_table
    from svt_jax.host import only_warns
    from svt_jax.training.progress import EncodingProgress, PlainConsole
    from svt_jax.writing import write_whole

    output, console = output_file(chosen.output), PlainConsole()
    alpha = PostProcessing.alpha if chosen.alpha is None else chosen.alpha
    post_processing = [PostProcessing(name, alpha, chosen.dim if name == "whitening" else None) for name in chosen.post]
    if chosen.alpha is not None and not any(post.each_side for post in post_processing):
        log.warning("--alpha does nothing: no --post is a SoftDecay. Leave it out.")
    if chosen.dim is not None and "whitening" not in chosen.post:
        raise ValueError("--dim is for --post whitening only. Leave it out, or choose that one.")
    with EncodingProgress(console) as progress:
        tables = evaluate_sts(
            chosen.model,
            chosen.data,
            protocol=chosen.protocol,
            poolings=chosen.pooling,
            post_processing=post_processing,
            fit=chosen.fit,
            embeddings=chosen.embeddings,
            max_length=chosen.max_length,
            progress=progress.begin,
        )
    write_whole(output, json.dumps(tables[0] if len(tables) == 1 else tables, indent=2) + "\n", NO_ROOM)
    with only_warns("the tables of results"):
        show(console, [score_table(tables), analysis_table(tables)], [output])
