"""kill -9 at random moments, saving included: the restarted run ends with the same bits as an undisturbed one."""

import random
import time

import pytest

from tests.faults.runs import Run, same_bits

KILLS = 20


def wait_for_the_moment(run, kind, dice):
    """A moment of the given kind; false if the run has ended before it came."""
    before = run.lines()
    if kind == "starting":
        moment = time.monotonic() + dice.uniform(0.0, 4.0)
        return run.wait(lambda: time.monotonic() > moment)
    came = run.wait(lambda: run.lines() > before + 1)
    if kind == "saving":
        came = came and run.wait(run.saving)
        time.sleep(dice.uniform(0.0, 0.03))
    else:
        time.sleep(dice.uniform(0.0, 0.5))
    return came and run.alive


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, reference, count):
    dice = random.Random(0)
    kinds = ["saving"] * 10 + ["training"] * 7 + ["starting"] * 3
    dice.shuffle(kinds)
    survived = chains = 0
    while kinds:  # a chain: killed and started again, until it is through
        chain, run = [], Run(tmp_path / f"chain{chains}")
        chains += 1
        run.start()
        while kinds and wait_for_the_moment(run, kinds[-1], dice):
            run.kill()
            chain.append(kinds.pop())
            run.start()
        status, output = run.finish()
        assert status == 0, output
        if same_bits(run.path, reference):
            survived += len(chain)
    count("kill -9", KILLS, survived)
