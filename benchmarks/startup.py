"""How long until the first step: `python -m benchmarks.startup`.

Runs train.py for one step in new processes, on the demo or as the given options say: first with an empty compilation cache,
then with the one that the first left. Prints the seconds of the whole process, those of compiling the training step as
the run counts them, and the number of programs; as a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import environment, table

ROOT = Path(__file__).parents[1]


def start(options: list[str], cache: Path, output: Path) -> dict[str, Any]:
    """Makes one run of one step."""
    command = [sys.executable, str(ROOT / "train.py"), *options, "--optim.max_steps", "1"]
    command += ["--run.output_dir", str(output), "--run.name", "first_step"]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = time.perf_counter() - begin
    train = json.loads((output / "first_step" / "results.json").read_text(encoding="utf-8"))["train"]
    return {"process_s": seconds, "compile_s": train["compile_time_s"], "compiles": train["compiles"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2, help="cold and cached runs")
    arguments, options = parser.parse_known_args()
    runs: list[dict[str, Any]] = []
    for _ in range(arguments.pairs):
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("cold", "cached"):
                runs.append({"cache": kind, **start(options, Path(folder) / "cache", Path(folder) / kind)})
    header = ["cache", "process s", "compiling the step s", "programs"]
    print(table(header, [[r["cache"], r["process_s"], r["compile_s"], r["compiles"]] for r in runs]))
    print("\n" + json.dumps({"environment": environment(), "options": options, "runs": runs}))


if __name__ == "__main__":
    main()
