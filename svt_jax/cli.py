"""The command line: parsing, errors in one line, exit codes, and the tables at the end.

Exit status: 0 done; 2 bad input (one line on standard error); 3 a number was not finite; 143 stopped by SIGTERM and 130
by Ctrl-C, state saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)

BAD_INPUT, NOT_FINITE, SIGNALLED = 2, 3, 128


def train(arguments: Sequence[str] | None = None, default_config: Path | None = None) -> int:
    """`train.py`: trains as a config says. Returns the exit status."""
    return _guarded(_train, list(sys.argv[1:] if arguments is None else arguments), default_config)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """`eval.py`: evaluates a run or a model. Returns the exit status."""
    return _guarded(_evaluate, list(sys.argv[1:] if arguments is None else arguments))


def _guarded(command: Callable[..., int], arguments: list[str], *rest: Any) -> int:
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # libraries' chatter would bury our own lines
    for name in ("absl", "orbax", "jax", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    enable_compilation_cache()

    import yaml

    from svt_jax.evaluation.metrics import NonFiniteError
    from svt_jax.training.loop import StoppedBySignalError

    try:
        return command(arguments, *rest)
    except (ValueError, OSError, yaml.YAMLError, NonFiniteError, StoppedBySignalError) as error:
        if show_traceback:
            traceback.print_exc()
        kind, status = "error", BAD_INPUT
        if isinstance(error, NonFiniteError):
            status = NOT_FINITE
        elif isinstance(error, StoppedBySignalError):
            kind, status = "stopped", SIGNALLED + error.number
        print(f"{kind}: {' '.join(str(error).split())}", file=sys.stderr)
        return status


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second run of a config starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder. The folder is one per kind of processor: programs for one CPU may
    not run on another.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            cpu = re.findall(r"^(?:model name|flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[
                :2
            ]
        except OSError:
            cpu = [platform.processor()]
        kind = hashlib.sha256("".join(cpu).encode()).hexdigest()[:12]
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "svt_jax" / f"compiled-{kind}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _train(arguments: list[str], default_config: Path | None) -> int:
    from rich.console import Console

    from svt_jax.training.progress import results_table

    chosen = any(re.match(r"--(config|model\.path|data\.task|help)\b|-h$", argument) for argument in arguments)
    if not chosen and default_config is not None:
        arguments = ["--config", str(default_config), *arguments]
    config = parse_config(arguments)
    console = Console()
    folder = train_run(config, console)
    results = folder.read_results()
    rows = [(f"validation {name}", f"{value:.4f}") for name, value in results["metrics"]["validation"].items()]
    rows.append(("best", f"step {results['best']['step']}, " + _scores(results["best"]["metrics"])))
    if results["svt"]["layers"]:
        alphas = ", ".join(
            f"layer {n}: {a:.4f}" for n, a in zip(results["svt"]["layers"], results["svt"]["alpha"], strict=False)
        )
        rows.append(("svt", results["svt"]["function"] + (f"; alpha {alphas}" if alphas else "")))
    else:
        rows.append(("svt", "none"))
    seconds = results["train"]
    rows += [
        (
            "training",
            f"{results['steps']} steps, {seconds['examples_per_second']:.1f} examples/s, {seconds['wall_time_s']:.0f} s in all",
        ),
        ("compilation", f"{seconds['compiles']} programs, {seconds['compile_time_s']:.0f} s"),
    ]
    console.print(results_table(f"{config.data.task}: {folder.path}", rows))
    for path in (folder.results, folder.metrics, folder.report, folder.checkpoints):
        print(f"see {path}")
    return 0


def train_run(config: Any, console: Any) -> Any:
    """Trains one run to its results and report, from its newest checkpoint if there is one; keeps one that is complete.

    Returns its `RunFolder`.
    """
    from svt_jax.training.loop import Trainer
    from svt_jax.training.run_folder import find_run

    folder = find_run(config)
    if folder.results.is_file():
        console.print(f"{folder.path} is complete already; to train again choose another --run.name.", highlight=False)
    else:
        Trainer(config, console).run()
    if not folder.report.is_file():  # also after a run that was killed between its results and its report
        write_report(folder)
    return folder


def parse_config(arguments: Sequence[str]) -> Any:
    """The TrainConfig of a command line: defaults, then --config files, then --section.key values, in that order.

    Raises:
      ValueError: for an unknown key, a wrong type or a value out of range.
    """
    from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

    from svt_jax.training.config import TrainConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="train.py",
        description="Fine-tunes an encoder with a singular value transformation. Without arguments: configs/demo.yaml.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with what differs from the defaults.")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--traceback", action="store_true", help="Show where an error came from.")
    try:
        parsed = parser.parse_args(_config_first(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(_explain(str(error), _keys(TrainConfig))) from error
    for section in (field.name for field in dataclasses.fields(TrainConfig)):
        if not isinstance(parsed[section], Namespace):
            raise ValueError(
                f"section {section} is {parsed[section]!r}; allowed is a table of keys. Fill it or leave it out."
            )
    values = parser.instantiate(parsed).as_dict()
    return TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Moves --config to the front: an option before it would otherwise be overridden by the file."""
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--config":
            front += [item, *([value] if (value := next(items, None)) is not None else [])]
        elif item.startswith("--config="):
            front.append(item)
        else:
            rest.append(item)
    return front + rest


def _keys(config_class: type) -> list[str]:
    sections = {f.name: f.default_factory for f in dataclasses.fields(config_class)}
    return [f"{section}.{f.name}" for section, make in sections.items() for f in dataclasses.fields(make)]  # type: ignore[arg-type]


def _explain(message: str, keys: list[str]) -> str:
    """The parser's message as: what came; what is allowed; what to do."""
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        return _unknown_key(found[1], keys)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return _unknown_key(f"{found[1]}.{found[2]}", keys)
    if found := re.search(r"[Oo]ption '([\w.]+)' is not accepted", message):
        return _unknown_key(found[1], keys)
    if found := re.search(r'Parser key "([\w.]+)": File does not exist: (.*)', message):
        return f"{found[1]} file {found[2]} does not exist; allowed is a YAML file. Check the path."
    if found := re.search(r'Parser key "([\w.]+)":.*?Expected an? (.*?)\. Got value: (.*)', message):
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "")
        return f"{found[1]} is {found[3]!r}; allowed is {allowed}. Correct the config or the option."
    if found := re.search(
        r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: (.*)$',
        message,
    ):
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "").replace(", ...", "")
        return f"{found[1]} is {found[3]}; allowed is one of {allowed}. Correct the config or the option."
    return f"{message}; allowed are --config FILE and --section.key VALUE. See --help."


def _unknown_key(key: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    section = key.split(".")[0]
    siblings = [k for k in keys if k.startswith(section + ".")]
    allowed = siblings or sorted({k.split(".")[0] for k in keys})
    return f"unknown key {key!r}; allowed are {', '.join(allowed)}. " + (
        f"Did you mean {near[0]}?" if near else "Correct its name."
    )


def _evaluate(arguments: list[str]) -> int:
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
    glue.add_argument("--checkpoint", default="last", help="last, best, or a step's number (default last)")
    glue.add_argument("--output", help="folder of the predictions for an unlabelled split (default RUN/submission)")
    report = commands.add_parser("report", help="write report.html from what a run left", allow_abbrev=False)
    report.add_argument("--run", required=True, help="folder that train.py wrote")
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
    sts = commands.add_parser("sts", help="score sentence embeddings on similarity, unsupervised", allow_abbrev=False)
    sts.add_argument("--model", required=True, help="folder or hub id of an encoder, with a tokenizer")
    sts.add_argument("--data", required=True, help="folder with tasks.json and its files")
    sts.add_argument("--protocol", default="paper", choices=("paper", "honest"), help="what --post is fitted on")
    sts.add_argument("--pooling", nargs="+", default=["mean"], help="mean, cls, first_last, or layers as in mean:1,-1")
    sts.add_argument(
        "--post", nargs="+", default=["none"], help="none, soft_decay, centered_soft_decay, whitening, ..."
    )
    sts.add_argument("--alpha", type=float, default=-0.6, help="of soft_decay (default -0.6)")
    sts.add_argument("--dim", type=int, help="directions that whitening keeps (default all)")
    sts.add_argument("--fit", help="sentences to fit on with --protocol honest: a text file, or .tsv")
    sts.add_argument("--embeddings", help="file that keeps the embeddings for the next time")
    sts.add_argument("--max_length", type=int, default=128, help="tokens of a sentence (default 128)")
    sts.add_argument("--output", required=True, help="JSON file: a table, or a list for several poolings or posts")
    for command in (glue, report, compare, sts):
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.error = glue.error = report.error = compare.error = sts.error = _raise_usage  # type: ignore[method-assign, assignment]
    options, rest = parser.parse_known_args(arguments)
    if rest and getattr(options, "config", None) is None:
        _raise_usage(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    commands_by_name = {"glue": _evaluate_glue, "report": _report, "compare": _compare, "sts": _evaluate_sts}
    return commands_by_name[options.command](options)


def _raise_usage(message: str) -> None:
    raise ValueError(f"{message}; allowed is what eval.py COMMAND --help lists. Correct the command.")


def _evaluate_glue(options: argparse.Namespace) -> int:
    from rich.console import Console

    from svt_jax.training.evaluate import evaluate_model, evaluate_run
    from svt_jax.training.progress import results_table

    if options.run:
        outcome = evaluate_run(
            options.run,
            split=options.split,
            source=options.source,
            eval_batch_size=options.eval_batch_size,
            checkpoint=options.checkpoint,
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
    from svt_jax.grid import grid_configs, run_grid

    console, runs, names = Console(), options.runs, None
    if options.config:
        if not re.fullmatch(r"\d+(,\d+)*", options.seeds or ""):
            raise ValueError(f"--seeds is {options.seeds!r}; --config needs numbers as in 0,1,2. Add or correct them.")
        seeds = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
        grid = grid_configs(parse_config, options.config, seeds, options.overrides, Path(options.output))
        runs, names = run_grid(grid, train_run, console), [name for name, _ in grid]
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


def _report(options: argparse.Namespace) -> int:
    from svt_jax.training.run_folder import read_run

    folder, _, _ = read_run(options.run)
    write_report(folder)
    print(folder.report)
    return 0


def _evaluate_sts(options: argparse.Namespace) -> int:
    from rich.console import Console

    from svt_jax.evaluation.sts import Post, evaluate_sts
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


def write_report(folder: Any) -> None:
    """Writes report.html into a run's folder."""
    from svt_jax.analysis.report import render_report

    folder.report.write_text(render_report(folder.path), encoding="utf-8")


def _scores(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
