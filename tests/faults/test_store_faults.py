"""The faults of `test_faults` with a run in an object store, and those that only a store has.

The resumed run ends with the same bits as an undisturbed one on a disk.
"""

import functools
import random
import re
import time

import pytest

from svt_jax.run.run_files import saved_steps
from svt_jax.stores import as_path
from tests.faults.runs import Run, same_bits
from tests.faults.test_faults import KILLS, moments, wait_for_the_moment
from tests.stores.servers import BUCKET, running
from tests.stores.test_stores import down, full

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request, tmp_path_factory):
    with running(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def start(server, tmp_path, request):
    """start(name): starts a run in a folder of its own in the store."""
    server.fault = None
    begun = []

    def new(name="runs", *options):
        folder = as_path(f"{server.scheme}://{BUCKET}/{request.node.name}-{name}".replace("[", "-").replace("]", ""))
        run = Run(folder, tmp_path / f"{name}.out", server.environment())
        begun.append(run)
        return run.start(*options)

    yield new
    for run in begun:
        if run.alive:
            run.kill()


def ends_well(run, reference):
    status, output = run.finish()
    assert status == 0, output
    return same_bits(run.path, reference)


def test_kills_at_random_moments_lose_nothing(server, start, reference, count):
    dice = random.Random(0)
    kinds = moments(KILLS, dice)
    survived = chains = 0
    while kinds:  # a chain: kill and restart until the run is complete
        chain, run = [], start(f"chain{chains}")
        chains += 1
        while kinds and wait_for_the_moment(run, kinds[-1], dice):
            run.kill()
            chain.append(kinds.pop())
            run.start()
        survived += len(chain) * ends_well(run, reference)
    count(f"{server.scheme}: kill -9", KILLS, survived)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(server, start, reference, count):
    """Each damaged object by itself is `test_store_checkpoint`'s."""
    run = start()
    assert run.wait(lambda: run.lines() >= 5)
    run.kill()
    folder = run.path / "checkpoints"
    newest = saved_steps(folder)[-1]
    file = next(folder / str(newest) / name for name in (folder / str(newest)).objects() if "params" in name)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    run.start()
    count(f"{server.scheme}: damaged newest checkpoint", 1, ends_well(run, reference))
    assert f"the checkpoint of step {newest} is damaged" in run.output()


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(server, start, reference, count, tmp_path):
    first = start()
    assert first.wait(lambda: first.lines() >= 2)
    with server.failing(functools.partial(slow, seconds=0.02)):  # so that it lives longer than the second one waits
        second = Run(first.folder, tmp_path / "second.out", server.environment()).start()
        status, output = second.finish()
    assert "is in use by another process" in output or first.process.exitcode == 0, output
    assert status == 2 or "complete already" in output
    count(f"{server.scheme}: two runs on one folder", 1, ends_well(first, reference))


def slow(request, seconds):
    time.sleep(seconds)


def test_slow_answers_only_take_time(server, start, reference, count):
    with server.failing(functools.partial(slow, seconds=0.05)):
        count(f"{server.scheme}: slow answers", 1, ends_well(start(), reference))


def test_a_tenth_of_the_answers_being_503_or_cut_loses_nothing(server, start, reference, count):
    dice = random.Random(1)
    kinds = [None] * 36 + [down(server), "cut"] * 2  # gcsfs waits a second or more after each
    with server.failing(lambda request: dice.choice(kinds)):
        count(f"{server.scheme}: 503 and cut connections", 1, ends_well(start(), reference))


def test_a_store_that_is_away_for_a_while_is_waited_for(server, start, reference, count):
    run = start()
    assert run.wait(lambda: run.lines() >= 4)
    if server.scheme == "gs":
        server.kill()
        time.sleep(5)
        server.start()
    else:  # moto keeps its objects in memory: only its front is away
        with server.failing(lambda request: "cut"):
            time.sleep(5)
    count(f"{server.scheme}: the store killed and started again", 1, ends_well(run, reference))


def test_a_full_bucket_is_one_line_and_the_same_command_resumes(server, start, reference, count):
    run = start()
    assert run.wait(lambda: run.lines() >= 4)
    with server.failing(lambda request: full(server) if request.writes else None):
        status, output = run.finish()
    assert status == 2, output
    errors = [line for line in output.splitlines() if not re.match("platform|writing to|WARNING|step|resuming", line)]
    assert len(errors) == 1, output
    assert re.fullmatch(r"error: .*(could not be written).*[qQ]uota.*[Mm]ake room.*", errors[0]), output
    assert saved_steps(run.path / "checkpoints")
    run.start()
    count(f"{server.scheme}: full bucket", 1, ends_well(run, reference))
    assert "resuming" in run.output()
