"""The lock in an object store: one holder, a way out after a lost host, and a holder that notices its loss."""

import json
import multiprocessing
import os
import threading

import pytest

from svt_jax.run import store_lock
from svt_jax.run.lock import is_lock, lock_folder
from svt_jax.run.store_lock import lock_in_store
from svt_jax.stores import StoreError, remove


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(store_lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(store_lock, "STALE_SECONDS", 1.5)


def content(folder, number):
    return json.loads((folder / f".lock-{number}").read_bytes())


def elsewhere(folder, number, **changes):
    """A lock of a process on another machine."""
    lock = {"owner": "x", "released": False, "beats": 3, "host": "other", "machine": "m", "pid": 7, "started": "1"}
    (folder / f".lock-{number}").write_bytes(json.dumps(lock | changes).encode())


def test_a_released_lock_is_free_and_numbers_rise(folder):
    lock = lock_folder(folder)
    assert content(folder, 1)["pid"] == os.getpid()
    lock.check()
    lock.release()
    lock.release()
    assert content(folder, 1)["released"]
    lock = lock_folder(folder)
    assert list(folder.objects()) == [".lock-2"]
    assert all(is_lock(path) for path in folder.iterdir())
    lock.release()


def test_a_living_holder_keeps_the_folder(folder):
    lock = lock_in_store(folder)
    with pytest.raises(ValueError, match="is in use by another process") as error:
        lock_in_store(folder)
    assert "\n" not in str(error.value)
    lock.check()
    lock.release()


def test_of_many_that_start_at_once_one_takes_the_folder(folder):
    taken, refused = [], []

    def start():
        try:
            taken.append(lock_in_store(folder))
        except ValueError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].release()


def test_the_lock_of_a_lost_host_is_taken_after_a_while(folder, caplog):
    elsewhere(folder, 4)
    lock = lock_in_store(folder)
    assert list(folder.objects()) == [".lock-5"]
    assert "was locked by process 7 on other: waiting up to" in caplog.text
    lock.release()


def _take_and_die(written, sender):
    from svt_jax.stores import as_path

    lock_in_store(as_path(written))
    sender.send(1)
    os._exit(1)


def test_a_process_of_this_machine_that_is_gone_is_known_at_once(folder, monkeypatch):
    monkeypatch.setattr(store_lock, "STALE_SECONDS", 1000.0)
    receiver, sender = multiprocessing.get_context("spawn").Pipe(False)
    process = multiprocessing.get_context("spawn").Process(target=_take_and_die, args=(str(folder), sender))
    process.start()
    receiver.recv()
    process.join()
    assert not content(folder, 1)["released"]
    lock_in_store(folder).release()


def test_a_holder_that_was_away_too_long_notices_and_writes_no_more(folder):
    lock = lock_in_store(folder)
    elsewhere(folder, 2)
    with pytest.raises(StoreError, match="another process has taken this folder"):
        lock.check()
    remove(folder)  # even when the other has ended
    with pytest.raises(StoreError, match="another process has taken this folder"):
        lock.check()
    lock._ended.set()
