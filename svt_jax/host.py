"""Settings of the machine that runs the programs: XLA's options, caches, file permissions, threads, the allocator.

Where one of them fails, or anything else beside the work, that is only a warning.
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
# cuBLAS computes products. XLA compiles each Triton kernel in many variants to find the fastest: on an H100 a training
# step of 6 layers compiled in 16 s with cuBLAS, and not within a minute with Triton (jax 0.11.2).
_GPU = {"xla_gpu_enable_triton_gemm": False}
# By platform, for programs with a derivative and for programs without one.
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    # What goes to XLA's library YNN. For a training step of 6 layers of 384, YNN's defaults take a quarter longer than
    # no YNN, and each product by itself takes 1 to 15 % less. Without a derivative, fusing around sums over rows takes
    # 2 to 15 % less up to 64 tokens, and up to a tenth more with 128 (jax 0.10.2, docs/performance.md).
    "cpu": {
        "training": {_YNN: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
        "inference": {_YNN: "LIBRARY_FUSION_TYPE_REDUCE"},
    },
    "gpu": {"training": _GPU, "inference": _GPU},
}


@functools.cache
def compiler_options(kind: Literal["training", "inference"]) -> dict[str, Any]:
    """Returns the options of `_OPTIONS` that this platform's XLA knows, for `jax.jit` and `Lowered.compile`."""
    known = {}
    for name, value in _OPTIONS.get(jax.default_backend(), {}).get(kind, {}).items():
        try:
            jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:  # another version of XLA
            continue
        known[name] = value
    return known


def cache_folder() -> Path:
    """Returns the folder for what svt_jax can make again: compiled programs and tokens."""
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
    """Sets a file's permissions to those that the umask leaves to a new file.

    safetensors' writer makes files that only this user can read, whatever the umask.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # os.umask cannot be read without being set
    with contextlib.suppress(OSError):  # some file systems have no permissions
        new.touch(exist_ok=False)
        path.chmod(stat.S_IMODE(new.stat().st_mode))
    new.unlink(missing_ok=True)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second run of a config starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS the seconds from which on a
    program is kept (0.3 without it). Each kind of processor has its own folder: a program for one CPU may not run on
    another. A folder that cannot be written is only read, with a warning.
    """
    least_seconds = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3"))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / f"compiled-{_processor()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:  # JAX would warn for each program
            log.warning("compiled programs are not kept: %s", error)
            least_seconds = 1e9  # no program compiles for so long, so none is written
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
    """Turns an error into a warning, for what lies beside finished work, such as a picture or a table on the console.

    Example:
      >>> with only_warns("the picture"):
      ...     raise OSError("no room")
    """
    try:
        yield
    except Exception as error:  # any kind: the work is done, and its files are there
        log.warning("%s could not be made (%s: %s)", what, type(error).__name__, " ".join(str(error).split()))


def same_settings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a context that sets this thread's precision of products and default device in another thread.

    JAX keeps `jax.default_matmul_precision` and `jax.default_device` by thread, so a worker would not see them.
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

    At each call a CPU program allocates all its intermediate results (1.3 GB for 32 x 128 tokens through 6 layers of
    384) and frees them at the end. By default the next step maps and zeroes each of those pages again: 340,000 page
    faults, a second of two cores' time in seven. Kept memory is one block of the heap. A process that alternates
    between two sizes may hold twice the memory. Call this before any thread starts: each thread brings an arena.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


@functools.cache
def hide_closed_loops() -> None:
    """Hides the traceback of each TensorStore thread that finds the event loop closed after a failed write.

    The code that waits for the checkpoint raises the error itself.
    """
    show = sys.unraisablehook

    def show_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            show(unraisable)

    sys.unraisablehook = show_others
