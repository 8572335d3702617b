"""`predict`: the classes of the texts of a file, by a trained classifier."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from svt_jax.cli.options import NO_ROOM, command_parser, output_file, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from svt_jax.evaluation.predict import Predictions


def options() -> ArgumentParser:
    parser = command_parser(
        "svt-jax predict",
        "Predicts the class, or the number, of each text of a file.",
        needed="--model DIR --input FILE",
        examples=(
            "--model rte-model --input sentences.txt",
            "--model rte-model --input pairs.tsv --data.text_columns sentence1 sentence2 --output predictions.csv",
        ),
    )
    inputs = parser.add_argument_group("what is read")
    inputs.add_argument(
        "--model", type=path, help="folder or hub id of a trained classifier, as eval.py export writes it"
    )
    inputs.add_argument(
        "--input", type=path, help="a .txt of one text a line, or a .tsv, .csv or .jsonl with named columns"
    )
    inputs.add_argument(
        "--data.text_columns",
        nargs="+",
        help="column of the sentences, or the two columns of the pairs: --data.text_columns question answer",
    )
    inputs.add_argument("--data.max_length", type=int, default=128, help="tokens of a text or pair (default 128)")
    parser.add_argument_group("what is written").add_argument(
        "--output",
        type=path,
        help="file: JSON lines (.jsonl) or a table (.csv) (default JSON lines on standard output)",
    )
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("model", "input"))

    from svt_jax.data.custom import load_texts
    from svt_jax.evaluation.predict import load_predictor, predict_examples
    from svt_jax.stores import as_path
    from svt_jax.text import counted
    from svt_jax.training.progress import EncodingProgress, PlainConsole, TokenizingProgress
    from svt_jax.writing import write_whole

    source = as_path(chosen.input)
    output = None if chosen.output is None else output_file(chosen.output, (".jsonl", ".csv"))
    columns = as_columns(chosen.data.text_columns)
    if columns is not None and not (len(columns) == len(set(columns)) <= 2):
        raise ValueError(
            f"--data.text_columns is {' '.join(columns)}; allowed is one column, or two different ones. Correct it."
        )
    examples = load_texts(source, columns)
    classifier, tokenizer = load_predictor(chosen.model)
    console = PlainConsole(stderr=True)  # standard output is for the predictions
    tokenized = TokenizingProgress(console, enabled=True).begin(source.name, len(examples))
    with EncodingProgress(console, what="texts", doing="predicting") as progress:
        found = predict_examples(
            classifier,
            examples,
            tokenizer,
            chosen.data.max_length,
            tokenized=tokenized,
            progress=progress.begin(len(examples)),
        )
    if output is None:
        sys.stdout.write(_json_lines(found))
    else:
        write_whole(output, _table(found) if output.suffix.lower() == ".csv" else _json_lines(found), NO_ROOM)
        print(f"see {output}: {counted(len(found), 'prediction')}")


def as_columns(words: list[str] | None) -> list[str] | None:
    """The names of columns, one an argument, or all of them as training takes them.

    Example:
      >>> as_columns(["question", "answer"]) == as_columns(["[question, answer]"])
      True
    """
    if words is None or len(words) != 1 or not (words[0].startswith("[") and words[0].endswith("]")):
        return words
    return [name.strip() for name in words[0][1:-1].split(",")]


def _json_lines(found: Predictions) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def _table(found: Predictions) -> str:
    from svt_jax.analysis.csv_text import csv_text

    if found.classes is None:
        return csv_text(["value"], ([row["value"]] for row in found))
    header = ["label", *(f"probability_{name}" for name in found.classes)]
    return csv_text(header, ([row["label"], *row["probabilities"].values()] for row in found))
