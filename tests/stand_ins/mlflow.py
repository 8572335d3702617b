"""A stand-in for MLflow: the calls that docs/extending.md makes, with MLflow's rules for names and values."""

import re

calls = []
_NAME = re.compile(r"[\w./: -]+")


def start_run(run_name=None):
    assert isinstance(run_name, str)
    calls.append(("start", run_name))


def log_params(params):
    assert all(_NAME.fullmatch(name) and len(str(value)) <= 6000 for name, value in params.items())
    calls.append(("params", params))


def log_metrics(metrics, step=None):
    assert type(step) is int
    assert all(_NAME.fullmatch(name) and isinstance(value, float) for name, value in metrics.items())
    calls.append(("metrics", step, metrics))


def end_run():
    calls.append(("end",))
