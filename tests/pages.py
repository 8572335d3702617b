"""Runs what a page shows, and compares what it prints with what the page says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = "--optim.max_steps 2 --data.max_length 32"
ROWS = 64  # in each file: two batches to train on, one to score
MODEL = "path/to/model"  # in a page: where a pretrained model lies
_END = "<<< end of a block >>>"
_RUN = f"""
import json, sys
blocks, together = json.loads(sys.stdin.read())
names = {{"__name__": "__main__"}}
for block in blocks:
    exec(compile(block, "<page>", "exec"), names if together else {{"__name__": "__main__"}})
    print("{_END}", flush=True)
"""


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def load(script):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def shown(page):
    """Each Python block of a page with the output that follows it; None where the page shows none."""
    found = re.findall(
        r"^```python\n(.*?)^```$(?:\n+^```\n(.*?)^```$)?", text(page), re.MULTILINE | re.DOTALL
    )  # fmt: skip
    return [(code, output or None) for code, output in found]


def run_python(codes, *, model=None, cwd=None, together=False):
    """What each block prints. All run in one process, with names of their own unless `together`.

    Packages that are not installed here have stand-ins.
    """
    path = os.pathsep.join([str(ROOT / "tests" / "stand_ins"), *filter(None, [os.environ.get("PYTHONPATH")])])
    codes = [code.replace(MODEL, str(model)) if model else code for code in codes]
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps([codes, together]), cwd=cwd, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split(_END + "\n")[:-1]


def assert_prints(output, expected):
    """The same words, and numbers that agree up to two of their last digit, which differs from machine to machine."""
    ours, theirs = (re.findall(r"[-+]?\d+\.\d+|[^\s.\[\]]+", part) for part in (output, expected))
    assert len(ours) == len(theirs), output
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            digits = len(b.partition(".")[2])
            assert digits, (a, b)
            assert abs(float(a) - float(b)) <= 2.01 * 10**-digits, (a, b)


def run_shell(script, **environment):
    """Runs lines of bash in the repository, with this interpreter."""
    done = subprocess.run(
        ["bash", "-ec", script.replace("svt-jax ", "python -m svt_jax ").replace("python ", f"{sys.executable} ")],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cut(source, target, lines):
    """Writes the first lines of a file into another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(line + b"\n" for line in source.read_bytes().split(b"\n")[:lines]))
    return target
