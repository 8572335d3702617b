"""What we set on the machine that runs the programs: XLA's options, caches and files on disk, threads, the allocator's habits.

And what happens where that, or anything else beside the work, fails: a warning.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

log = logging.getLogger(__name__)

_YNN = "xla_cpu_experimental_ynn_fusion_type"
# Products by cuBLAS, not by Triton kernels, each of which is compiled in many variants to find the fastest: on an H100
# a training step of 6 layers compiled in 16 s; with them it had not after a minute (jax 0.11.2).
_GPU = {"xla_gpu_enable_triton_gemm": False}
# By platform: of programs that have a derivative, and of those that have none.
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    # What goes to XLA's library YNN. With its defaults a training step of 6 layers of 384 takes a quarter longer than with
    # nothing, with each product by itself 1 to 15 % less; without a derivative what is around sums over rows takes 2 to
    # 15 % less up to 64 tokens and up to a tenth more with 128 (jax 0.10.2, docs/performance.md).
    "cpu": {
        "training": {_YNN: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
        "inference": {_YNN: "LIBRARY_FUSION_TYPE_REDUCE"},
    },
    "gpu": {"training": _GPU, "inference": _GPU},
}


@functools.cache
def compiler_options(kind: Literal["training", "inference"]) -> dict[str, Any]:
    """Options for `jax.jit(..., compiler_options=)` and `Lowered.compile` on this platform, those that its XLA knows."""
    known = {}
    for name, value in _OPTIONS.get(jax.default_backend(), {}).get(kind, {}).items():
        try:
            jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:  # another version of XLA
            continue
        known[name] = value
    return known


def cache_folder() -> Path:
    """Where svt_jax keeps what it can make again: compiled programs and tokens."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "svt_jax"
    except RuntimeError:
        return _folder_of_this_process()


@functools.cache
def _folder_of_this_process() -> Path:
    folder = tempfile.mkdtemp(prefix="svt_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning(
        "there is no home folder to keep compiled programs and tokens in, so the next run makes them again. Set "
        "XDG_CACHE_HOME, or HOME, to a folder of yours."
    )
    return Path(folder)


def open_to_umask(path: Path) -> None:
    """Gives a file the permissions that the umask leaves to a new one.

    safetensors' writer makes files that only this user can read, whatever the umask.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # os.umask cannot be read without being set
    with contextlib.suppress(OSError):  # some file systems have no permissions
        new.touch(exist_ok=False)
        path.chmod(stat.S_IMODE(new.stat().st_mode))
    new.unlink(missing_ok=True)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second run of a config starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder. The folder is one per kind of processor: programs for one CPU may
    not run on another. One that cannot be written is only read, with a warning.
    """
    least_seconds = 0.3
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / f"compiled-{_processor()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:  # JAX would warn for each program
            log.warning("compiled programs are not kept: %s", error)
            least_seconds = 1e9  # of compiling, to be worth keeping
        jax.config.update("jax_compilation_cache_dir", str(folder) if folder.is_dir() else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def _processor() -> str:
    """A short word for this kind of processor."""
    try:
        cpu = re.findall(r"^(?:model name|flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2]
    except OSError:
        cpu = [platform.processor()]
    return hashlib.sha256("".join(cpu).encode()).hexdigest()[:12]


@contextlib.contextmanager
def only_warns(what: str) -> Iterator[None]:
    """What lies beside finished work, such as a picture or a table on the console: if it fails, that is a warning.

    Example:
      >>> with only_warns("the picture"):
      ...     raise OSError("no room")
    """
    try:
        yield
    except Exception as error:  # of whatever kind: the work is done, and its files are there
        log.warning("%s could not be made (%s: %s)", what, type(error).__name__, " ".join(str(error).split()))


def same_settings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes a context that gives another thread this one's precision of products and default device.

    JAX keeps what `jax.default_matmul_precision` and `jax.default_device` set by thread: a worker would not see it.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    device = jax.config.jax_default_device  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        with jax.default_matmul_precision(precision), jax.default_device(device):
            yield

    return settings


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets the C library keep what XLA frees, instead of handing it back to the system; does nothing without glibc.

    On CPU a program takes the memory of all its intermediate results (1.3 GB for 32 x 128 tokens through 6 layers of
    384) at each call and frees it at the end. By default each of those pages is mapped and zeroed again in the next
    step: 340,000 page faults, a second of two cores' time in seven. Kept, it is one block of the heap. A process that
    takes long turns between two sizes may hold twice the memory. To be called before threads are: they bring arenas.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


@functools.cache
def hide_closed_loops() -> None:
    """After a failed write each of TensorStore's threads finds the event loop closed, and would print a traceback.

    The error itself is raised where the checkpoint is waited for.
    """
    show = sys.unraisablehook

    def show_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            show(unraisable)

    sys.unraisablehook = show_others
