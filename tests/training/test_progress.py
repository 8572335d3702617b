"""What a person sees: names as they are, the device that the run uses, and no harm if nobody reads."""

import io
from types import SimpleNamespace

import jax
import pytest

from svt_jax.mesh import make_mesh
from svt_jax.run.distributed import describe
from svt_jax.training import progress
from svt_jax.training.clock import Clock
from svt_jax.training.progress import (
    EncodingProgress,
    PlainConsole,
    TokenizingProgress,
    TrainingProgress,
    results_table,
)

NAME = "runs/[/b]/[red]:smile:"


def test_names_are_shown_as_they_are():
    shown = io.StringIO()
    console = PlainConsole(file=shown, width=100)
    console.print(f"resuming {NAME}")
    console.print(results_table(f"demo: {NAME}", [("best", NAME)]))
    assert shown.getvalue().count(NAME) == 3


def started(console):
    bar = TrainingProgress(console, enabled=True)
    run = SimpleNamespace(step=0, num_steps=3, steps_per_epoch=2, clock=Clock(), folder="runs/a")
    with jax.set_mesh(make_mesh()):
        bar.on_start(run)
    return bar


def test_a_bars_note_is_shown_as_it_is():
    shown = io.StringIO()
    bar = started(PlainConsole(file=shown, width=150, force_terminal=True))
    bar.on_busy("measuring [/b]")
    bar.close()
    assert "measuring [/b]" in shown.getvalue()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_training_goes_on_where_its_output_cannot_be_written(monkeypatch, caplog, error):
    class Broken(io.StringIO):
        def write(self, _):
            raise error

    discarded = []
    monkeypatch.setattr(progress, "discard_output", lambda: discarded.append(1))
    bar = started(PlainConsole(file=Broken()))
    for step in (1, 2):
        bar.on_evaluate(step, {"validation": {"accuracy": 0.5}})
    bar.close()
    assert len(caplog.messages) == len(discarded) == 1
    assert "nothing more is shown" in caplog.messages[0]


def test_platform_devices_processes_and_mesh_are_one_line():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    assert describe(mesh) == "platform cpu, 8 devices (cpu), 1 process; mesh data 4, tensor 2"
    assert describe(jax.make_mesh((1,), ("data",))) == "platform cpu, 1 device (cpu), 1 process; mesh data 1"


def test_where_a_run_is_written_is_told_with_the_devices():
    shown = io.StringIO()
    started(PlainConsole(file=shown, width=40)).close()
    assert shown.getvalue().splitlines() == [
        "platform cpu, 8 devices (cpu), 1 process; mesh data 8, fsdp 1, tensor 1",
        "writing to runs/a",
    ]


def test_tokenising_many_texts_is_told_each_minute(monkeypatch):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    shown = io.StringIO()
    advance = TokenizingProgress(PlainConsole(file=shown, width=40), enabled=True).begin("train", 100_000)
    for _ in range(10):
        advance(10_000)
    assert shown.getvalue().splitlines() == [
        f"tokenising train: {done} of 100000 examples" for done in (30_000, 60_000, 90_000)
    ]


def test_predicting_is_told_each_minute_with_its_own_word(monkeypatch):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    shown = io.StringIO()
    with EncodingProgress(PlainConsole(file=shown, width=40), what="texts", doing="predicting") as bar:
        advance = bar.begin(500)
        for _ in range(5):
            advance(100)
    assert shown.getvalue().splitlines() == ["predicting: 300 of 500 texts  4 texts/s  left 0:00:50"]


def test_few_texts_are_tokenised_without_a_word():
    for options, total in (({"enabled": True}, 20_000), ({"enabled": False}, 100_000)):
        shown = io.StringIO()
        TokenizingProgress(PlainConsole(file=shown, force_terminal=True), **options).begin("train", total)(total)
        assert shown.getvalue() == ""


def test_a_bar_of_texts_ends_with_the_last_one():
    shown = io.StringIO()
    advance = TokenizingProgress(PlainConsole(file=shown, width=100, force_terminal=True), enabled=True).begin(
        "train", 60_000
    )
    advance(60_000)
    assert "60000/60000" in shown.getvalue()
