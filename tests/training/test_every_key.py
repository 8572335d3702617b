"""A run reads every key of the config: a key that is parsed and ignored would be a lie."""

import dataclasses
import sys

import pytest
from rich.console import Console

from svt_jax.run.command_line import parse_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.distributed import join
from svt_jax.run.folder import find_run
from svt_jax.run.task_data import find_task, load_split
from svt_jax.training.train import train

# Copying, comparing or printing a whole config does not use its keys; that code calls dataclasses' functions.
COPYING = {"<string>", dataclasses.__file__}


@pytest.fixture
def read(monkeypatch):
    """The keys that are read from here on."""
    seen = set()
    for section in dataclasses.fields(TrainConfig):
        config_class = section.default_factory
        names = {field.name for field in dataclasses.fields(config_class)}

        def getter(self, name, section=section.name, names=names):
            if name in names and sys._getframe(1).f_code.co_filename not in COPYING:
                seen.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        monkeypatch.setattr(config_class, "__getattribute__", getter)
    return seen


@pytest.mark.slow
def test_a_run_reads_every_key(tmp_path, read):
    (tmp_path / "train.tsv").write_text("a\tlabel\n" + "red kite\tred\nblue kite\tblue\n" * 8)
    shared = f"--svt.function soft_decay --optim.max_steps 1 --optim.batch_size 8 --run.output_dir {tmp_path}".split()
    custom = f"--data.task custom --model.path any --data.source {tmp_path} --data.label_column label".split()
    demo = parse_config(["--run.name", "demo", *shared])
    padded = parse_config(["--run.name", "padded", "--data.layout", "padded", *shared])
    own = parse_config([*shared, *custom, "--data.text_columns", "[a]"])
    sections = {f.name: f.default_factory for f in dataclasses.fields(TrainConfig)}
    every = {f"{section}.{f.name}" for section, make in sections.items() for f in dataclasses.fields(make)}

    read.clear()  # forget the keys that the checks of values have read
    join(demo.distributed)
    assert train(demo, console=Console(quiet=True)).results["steps"] == 1
    padded_keys = {"data.buckets", "data.group_by_length"}
    own_keys = {"data.source", "data.text_columns", "data.label_column", "data.labels"}
    assert every - read == {*own_keys, *padded_keys, "checkpoint.resume"}
    assert train(padded, console=Console(quiet=True)).results["steps"] == 1
    assert every - read == {*own_keys, "checkpoint.resume"}
    find_run(demo)  # now there is a run, which may be resumed
    assert every - read == own_keys
    assert len(load_split(find_task(own.data), own.data, "train")) == 16
    assert every - read == set()
