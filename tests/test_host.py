"""What `svt_jax.host` sets: that the allocator keeps memory, and that options reach the compiler only where it knows them."""

import platform
import subprocess
import sys

import jax
import pytest

from svt_jax import cli, host

_FAULTS = """
import resource, sys, threading
from svt_jax.host import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()

def step():
    for _ in range(4):
        bytearray(b"x") * 100_000_000

def count():  # in a thread, as XLA does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

count()
print(count())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_mapped_again():
    def faults(word: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", _FAULTS, word], capture_output=True, text=True, check=True).stdout
        )

    pages = 4 * 100_000_000 // 4096
    assert faults("keep") < pages / 100
    assert faults("default") > pages / 2  # or there is nothing to keep


def test_an_option_of_another_version_is_left_out(monkeypatch):
    monkeypatch.setattr(host, "_OPTIONS", {"cpu": {"training": {"xla_no_such_option": "1"}}})
    host.compiler_options.cache_clear()
    assert host.compiler_options("training") == {}
    host.compiler_options.cache_clear()


@pytest.mark.parametrize(("platform", "options"), [("gpu", {"xla_gpu_enable_triton_gemm": False}), ("tpu", {})])
def test_each_platform_has_its_options(platform, options, monkeypatch):
    """XLA knows the options of all platforms everywhere, so that a misspelt one would be left out here too."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    host.compiler_options.cache_clear()
    assert host.compiler_options("training") == host.compiler_options("inference") == options
    host.compiler_options.cache_clear()


def test_without_a_home_folder_one_line_says_what_to_set(monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(host.Path, "home", staticmethod(no_home))
    assert cli.evaluate(["glue", "--run", "none"]) == 2
    assert "there is no home folder" in capsys.readouterr().err
