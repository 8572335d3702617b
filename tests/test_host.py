"""`svt_jax.host`: the allocator keeps memory, and options reach the compiler only if it knows them."""

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
    assert faults("default") > pages / 2  # without these there is nothing to keep


def test_an_option_of_another_version_is_left_out(monkeypatch):
    monkeypatch.setattr(host, "_OPTIONS", {"cpu": {"training": {"xla_no_such_option": "1"}}})
    host.compiler_options.cache_clear()
    assert host.compiler_options("training") == {}
    host.compiler_options.cache_clear()


@pytest.mark.parametrize(("platform", "options"), [("gpu", {"xla_gpu_enable_triton_gemm": False}), ("tpu", {})])
def test_each_platform_has_its_options(platform, options, monkeypatch):
    """XLA knows every platform's options on every platform, so it would also leave out a misspelt one here."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    host.compiler_options.cache_clear()
    assert host.compiler_options("training") == host.compiler_options("inference") == options
    host.compiler_options.cache_clear()


@pytest.fixture
def default_cache(monkeypatch):
    """Lets our code choose the compilation cache's folder, as for a user; restores the tests' own afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_without_a_home_folder_caches_last_as_long_as_the_process(monkeypatch, caplog, default_cache):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(host.Path, "home", staticmethod(no_home))
    host._folder_of_this_process.cache_clear()
    assert cli.evaluate(["glue", "--run", "none"]) == 2  # there is no such run
    assert host.cache_folder().is_dir()
    assert host.cache_folder() == host.cache_folder()
    (warning,) = caplog.messages
    assert "there is no home folder" in warning
    assert "Set XDG_CACHE_HOME, or HOME" in warning


@pytest.mark.parametrize("blocked_at", ["svt_jax", "."])
def test_a_cache_folder_that_cannot_be_made_is_one_warning(monkeypatch, caplog, default_cache, tmp_path, blocked_at):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocked = tmp_path / "cache" / blocked_at
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file")
    host.enable_compilation_cache()
    (warning,) = caplog.messages
    assert "compiled programs are not kept" in warning
    assert jax.config.jax_compilation_cache_dir is None
    assert jax.config.jax_persistent_cache_min_compile_time_secs > 1e6  # otherwise JAX warns for each program


def test_what_lies_beside_the_work_only_warns(caplog):
    with host.only_warns("the picture"):
        raise RuntimeError("of any\nkind")
    assert caplog.messages == ["the picture could not be made (RuntimeError: of any kind)"]
    with pytest.raises(KeyboardInterrupt), host.only_warns("the picture"):
        raise KeyboardInterrupt
