"""The commands of eval.py: their options, what they call, and the tables that they print."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
from pathlib import Path

log = logging.getLogger(__name__)


def run_command(arguments: list[str]) -> int:
    """Runs one command of eval.py; returns the exit status."""
    parser = argparse.ArgumentParser(prog="eval.py", description="Evaluates a run or a model.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    glue = commands.add_parser("glue", help="score a run, or a classifier, on its task", allow_abbrev=False)
    which = glue.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="folder that train.py wrote")
    which.add_argument("--model", help="folder or hub id of a classifier with its head")
    glue.add_argument("--task", help="task of --model; a run knows its own")
    glue.add_argument("--data.source", dest="source", help="overrides the run's data.source")
    glue.add_argument("--data.eval_batch_size", dest="eval_batch_size", type=int)
    glue.add_argument("--data.max_length", dest="max_length", type=int, help="with --model (default 128)")
    glue.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    glue.add_argument("--checkpoint", help="of --run: last, best, or a step's number (default last)")
    glue.add_argument(
        "--output", help="folder of the predictions for an unlabelled split (default RUN/submission, or submission)"
    )
    spectrum = commands.add_parser(
        "spectrum", help="measure the spectrum of each layer: JSON and pictures", allow_abbrev=False
    )
    which = spectrum.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="folder that train.py wrote")
    which.add_argument("--model", help="folder or hub id of an encoder")
    spectrum.add_argument("--task", help="whose validation set is read with --model; a run knows its own")
    spectrum.add_argument("--data.source", dest="source", help="overrides the run's data.source")
    spectrum.add_argument("--data.max_length", dest="max_length", type=int, help="with --model (default 128)")
    spectrum.add_argument("--checkpoint", help="of --run: last, best, or a step's number (default last)")
    spectrum.add_argument("--output", required=True, help="folder of spectrum.json and the pictures")
    report = commands.add_parser("report", help="write report.html from what a run left", allow_abbrev=False)
    report.add_argument("--run", required=True, help="folder that train.py wrote")
    report.add_argument("--baseline", help="another run of the same task to compare with")
    compare = commands.add_parser(
        "compare", help="compare settings over seeds: train a grid, or read finished runs", allow_abbrev=False,
        epilog="with --config, --section.key VALUE overrides every file",
    )  # fmt: skip
    which = compare.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config", action="append", help="a setting: one file, or several joined with +; first: baseline"
    )
    which.add_argument("--runs", nargs="+", help="folders that train.py has completed; the first is of the baseline")
    compare.add_argument("--seeds", help="of the grid, as in 0,1,2")
    compare.add_argument("--output", required=True, help="folder of table, CSV and picture, and of the grid's runs")
    export = commands.add_parser("export", help="write a run's classifier as a model folder", allow_abbrev=False)
    export.add_argument("--run", required=True, help="folder that train.py wrote")
    export.add_argument("--checkpoint", default="last", help="last, best, or a step's number (default last)")
    export.add_argument(
        "--svt", choices=("keep", "drop"), help="of a run with an SVT, which transformers cannot compute: keep its "
        "parameters beside the others, for svt_jax, or leave it out"
    )  # fmt: skip
    export.add_argument("--output", required=True, help="folder of config.json, model.safetensors and the tokenizer")
    sts = commands.add_parser("sts", help="score sentence embeddings on similarity, unsupervised", allow_abbrev=False)
    sts.add_argument("--config", help="YAML file of the options below; those on the command line override it")
    sts.add_argument("--model", required=True, help="folder or hub id of an encoder, with a tokenizer")
    sts.add_argument("--data", required=True, help="folder with tasks.json and its files")
    sts.add_argument("--protocol", default="paper", choices=("paper", "honest"), help="what --post is fitted on")
    sts.add_argument("--pooling", nargs="+", default=["mean"], help="mean, cls, first_last, or layers as in mean:1,-1")
    sts.add_argument(
        "--post", nargs="+", default=["none"], help="none, soft_decay, centered_soft_decay, whitening, ..."
    )
    sts.add_argument("--alpha", type=float, default=-0.6, help="of soft_decay (default -0.6)")
    sts.add_argument("--dim", type=int, help="directions that whitening keeps (default all)")
    sts.add_argument("--fit", help="sentences to fit on with --protocol honest: .txt, .tsv, .csv or .jsonl")
    sts.add_argument("--embeddings", help="file that keeps the embeddings for the next time")
    sts.add_argument("--max_length", type=int, default=128, help="tokens of a sentence (default 128)")
    sts.add_argument("--output", required=True, help="JSON file: a table, or a list for several poolings or posts")
    for key, kind in (("coordinator", str), ("num_processes", int), ("process_id", int)):
        glue.add_argument(f"--distributed.{key}", dest=key, type=kind, help="as in train.py's config")
    for command in (glue, spectrum, report, compare, export, sts):
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
        command.error = _raise_usage  # type: ignore[method-assign, assignment]
    parser.error = _raise_usage  # type: ignore[method-assign, assignment]
    if arguments[:1] == ["sts"]:
        allowed = [action.dest for action in sts._actions if action.dest not in ("help", "config", "traceback")]
        arguments = ["sts", *_from_files(arguments[1:], allowed)]
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "compare" or options.config is None):
        known = [name for name in commands.choices[options.command]._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(rest[0], known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unrecognized arguments: {' '.join(rest)}; allowed are {', '.join(known)}. Did you mean {near}?"
        )
    options.overrides = rest
    commands_by_name = {
        "glue": _evaluate_glue, "spectrum": _spectrum, "report": _report, "compare": _compare, "export": _export,
        "sts": _evaluate_sts,
    }  # fmt: skip
    return commands_by_name[options.command](options)


def _raise_usage(message: str) -> None:
    raise ValueError(f"{message}; allowed is what eval.py COMMAND --help lists. Correct the command.")


def _from_files(arguments: list[str], allowed: list[str]) -> list[str]:
    """The arguments with each --config FILE replaced by the options that it holds, put in front."""
    import yaml

    from svt_jax.training.command_line import unknown_key

    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", action="append", default=[])
    files.error = _raise_usage  # type: ignore[method-assign, assignment]
    found, rest = files.parse_known_args(arguments)
    front: list[str] = []
    for path in found.config:
        if not Path(path).is_file():
            raise ValueError(f"--config {path!r} does not exist; allowed is a YAML file. Correct the path.")
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds {values!r}; allowed is a table of {', '.join(allowed)}. Correct the file.")
        if unknown := [str(key) for key in values if key not in allowed]:
            raise ValueError(f"{path}: " + " ".join(unknown_key(key, allowed) for key in unknown))
        for key, value in values.items():
            if value is None:  # the option's default
                continue
            front += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return front + rest


def _check_owner(options: argparse.Namespace) -> None:
    """Refuses what would not be read: options of --model with --run, and of --run with --model."""
    if options.run and (options.task or options.max_length):
        raise ValueError("--task and --data.max_length go with --model; a run knows its own. Leave them out.")
    if options.model and options.checkpoint:
        raise ValueError("--checkpoint goes with --run; a model folder has one set of weights. Leave it out.")


def _evaluate_glue(options: argparse.Namespace) -> int:
    from rich.console import Console

    from svt_jax.training import processes
    from svt_jax.training.config import DistributedConfig
    from svt_jax.training.evaluate import evaluate_model, evaluate_run
    from svt_jax.training.progress import results_table

    _check_owner(options)
    processes.join(DistributedConfig(options.coordinator, options.num_processes, options.process_id), saves=False)
    if options.run:
        outcome = evaluate_run(
            options.run,
            split=options.split,
            source=options.source,
            eval_batch_size=options.eval_batch_size,
            checkpoint=options.checkpoint or "last",
            output=options.output,
        )
    else:
        outcome = evaluate_model(
            options.model,
            task=options.task,
            split=options.split,
            source=options.source,
            eval_batch_size=options.eval_batch_size,
            max_length=options.max_length,
            output=options.output,
        )
    if not processes.is_first():
        return 0
    rows = [
        (f"{name}{key.removeprefix('metrics')}", f"{value:.6f}")
        for key in outcome if key.startswith("metrics") for name, value in outcome[key].items()
    ]  # fmt: skip
    rows += [(name, str(value)) for name, value in outcome.items() if not name.startswith("metrics")]
    Console().print(results_table(f"{outcome['task']} {options.split}", rows))
    print(json.dumps(outcome))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from svt_jax.analysis.compare import compare
    from svt_jax.analysis.comparison_files import table, write_comparison
    from svt_jax.runs import grid_configs, run_grid
    from svt_jax.training.processes import is_first

    if Path(options.output).is_file():
        raise ValueError(
            f"--output {options.output} is a file; allowed is a folder, which may not exist yet. Correct it."
        )
    console, runs, names = Console(), options.runs, None
    if not console.is_terminal:
        console = Console(width=120)  # a file is not 80 columns wide, which would cut headers
    if options.config:
        if not re.fullmatch(r"\d+(,\d+)*", options.seeds or ""):
            raise ValueError(f"--seeds is {options.seeds!r}; --config needs numbers as in 0,1,2. Add or correct them.")
        seeds = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
        grid = grid_configs(options.config, seeds, options.overrides, Path(options.output))
        runs, names = run_grid(grid, console), [name for name, _ in grid]
        if not is_first():
            return 0
    elif options.seeds:
        raise ValueError("--seeds goes with --config; the runs of --runs have theirs. Leave it out.")
    comparison = compare(runs, names)
    paths = write_comparison(comparison, Path(options.output))
    header, *rows = table(comparison)
    shown = Table(
        *header,
        title=f"{comparison.task}: validation x 100; differences from {comparison.settings[0]}, paired by seed",
        title_justify="left",
    )
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for warning in comparison.warnings:
        log.warning(warning)
    for path in paths:
        print(f"see {path}")
    return 0


def _spectrum(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from svt_jax.evaluation.probe import MEASURES
    from svt_jax.training.spectra import model_spectrum, run_spectrum

    output = Path(options.output)
    if output.is_file():
        raise ValueError(f"--output {output} is a file; allowed is a folder, which may not exist yet. Correct it.")
    _check_owner(options)
    if options.run:
        reading = run_spectrum(options.run, source=options.source, checkpoint=options.checkpoint or "last")
    else:
        reading = model_spectrum(options.model, task=options.task, source=options.source, max_length=options.max_length)
    from svt_jax.analysis import plots

    output.mkdir(parents=True, exist_ok=True)
    paths = [output / "spectrum.json"]
    paths[0].write_text(json.dumps(reading, indent=2) + "\n", encoding="utf-8")
    paths += plots.save(
        {
            "histograms": plots.spectrum_histograms(reading),
            "svt_histograms": plots.svt_histograms(reading),
            "cdf": plots.spectrum_cdf(reading),
            "measures": plots.measures_by_depth({options.run or options.model: [reading]}),
        },
        output,
    )
    shown = Table(
        "layer", "state", "skewness", "median", "token", "CLS", "EV1", "EV3", "rank", box=None, title_justify="left",
        title=f"{reading['task']}: skewness, median of σ/σ₁, uniformities, effective rank; {reading['examples']} examples",
    )  # fmt: skip
    for state in reading["states"]:
        shown.add_row(
            plots.layer_name(state["layer"]),
            state["state"].replace("svt_", "SVT "),
            *(f"{state[measure]:.3f}" for measure in MEASURES),
        )
    Console().print(shown)
    for path in paths:
        print(f"see {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from svt_jax.runs import write_report
    from svt_jax.training.run_folder import read_run

    folder, _, _ = read_run(options.run)
    write_report(folder, read_run(options.baseline)[0].path if options.baseline else None)
    print(folder.report)
    return 0


def _export(options: argparse.Namespace) -> int:
    from svt_jax.training.export import export_run

    step = export_run(options.run, options.output, checkpoint=options.checkpoint, svt=options.svt)
    print(f"see {options.output}: the model after step {step}")
    return 0


def _evaluate_sts(options: argparse.Namespace) -> int:
    from rich.console import Console

    from svt_jax.evaluation.sts import evaluate_sts
    from svt_jax.evaluation.sts_posts import Post
    from svt_jax.evaluation.sts_tables import analysis_table, score_table
    from svt_jax.training.progress import EncodingProgress

    output, console = Path(options.output), Console()
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(
            f"--output {output}: allowed is a file in a folder that exists. Make the folder, or correct it."
        )
    posts = [Post(name, options.alpha, options.dim if name == "whitening" else None) for name in options.post]
    if options.dim is not None and "whitening" not in options.post:
        raise ValueError("--dim is for --post whitening only. Leave it out, or choose that post.")
    with EncodingProgress(console) as progress:
        tables = evaluate_sts(
            options.model,
            options.data,
            protocol=options.protocol,
            poolings=options.pooling,
            posts=posts,
            fit=options.fit,
            embeddings=options.embeddings,
            max_length=options.max_length,
            progress=progress.begin,
        )
    output.write_text(json.dumps(tables[0] if len(tables) == 1 else tables, indent=2) + "\n", encoding="utf-8")
    console.print(score_table(tables))
    console.print(analysis_table(tables))
    print(f"see {output}")
    return 0
