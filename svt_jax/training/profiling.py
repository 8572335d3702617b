"""What a run measures of the machine: a trace of some steps, and the memory in use.

Both lie beside the run's work: where they fail they warn, and the numbers of the run stay the same bits.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from svt_jax.host import only_warns
from svt_jax.run.folder import RunFolder

log = logging.getLogger(__name__)

_NAMES_IN_KEY = "jax_compilation_cache_include_metadata_in_key"


class Profiler:
    """Traces the steps that `log.profile_steps` names, for TensorBoard and Perfetto.

    The run's folder profile/ then holds plugins/profile/<time>/: <host>.xplane.pb for TensorBoard's profile plugin, and
    perfetto_trace.json.gz for https://ui.perfetto.dev. There each operation of a step has the argument op_name, with the
    scopes embeddings, layer_<n>, svt, head and optimizer.

    Args:
      folder: the run's folder.
      steps: the first and the last step, from 1; None traces nothing.
      programs: returns the text of each compiled step.
    """

    def __init__(self, folder: RunFolder, steps: tuple[int, int] | None, programs: Callable[[], Sequence[str]]):
        self._folder, self._steps, self._programs = folder, steps, programs
        self._traces: tempfile.TemporaryDirectory[str] | None = None
        self._key_before = getattr(jax.config, _NAMES_IN_KEY)
        if steps is not None:  # a program that an earlier version kept on disk has no scopes
            jax.config.update(_NAMES_IN_KEY, True)

    def before(self, step: int) -> None:
        """Begins the trace if this is its first step, or if a run resumes at one of its later steps."""
        if self._steps is None or self._traces is not None or not self._steps[0] <= step <= self._steps[1]:
            return
        with only_warns("the trace of log.profile_steps"), contextlib.ExitStack() as failing:
            traces = tempfile.TemporaryDirectory(prefix="svt_jax-profile-")
            failing.enter_context(traces)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would hide the rest
            jax.profiler.start_trace(traces.name, profiler_options=options)
            failing.pop_all()
            self._traces = traces
            return
        self._steps = None

    def ends_after(self, step: int) -> bool:
        """Whether this is the last step of a trace. The device must have done it when `finish` is called."""
        return self._traces is not None and self._steps is not None and step >= self._steps[1]

    def finish(self) -> None:
        """Ends the trace, and writes its files into the run's folder, which may be in an object store."""
        traces, self._traces, self._steps = self._traces, None, None
        if traces is None:
            return
        with traces, only_warns("the trace of log.profile_steps"):
            jax.profiler.stop_trace()
            top = Path(traces.name)
            for path in top.rglob("*.trace.json.gz"):
                _write_for_perfetto(path, self._programs())
            for path in (path for path in top.rglob("*") if path.is_file()):
                target = self._folder.profile / path.relative_to(top).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Ends a trace whose last step did not come."""
        self.finish()
        jax.config.update(_NAMES_IN_KEY, self._key_before)


def _write_for_perfetto(path: Path, programs: Sequence[str]) -> None:
    """Replaces the trace by one that Perfetto opens, and names the scopes of each operation."""
    trace = json.loads(gzip.decompress(path.read_bytes()))
    trace.pop("metadata", None)  # Perfetto refuses it
    scopes = dict(found for text in programs for found in _OPERATION.findall(text))
    for event in trace["traceEvents"]:
        if name := scopes.get(event.get("args", {}).get("hlo_op", "")):
            event["args"]["op_name"] = name
    path.with_name("perfetto_trace.json.gz").write_bytes(gzip.compress(json.dumps(trace).encode()))
    path.unlink()


_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*\bop_name="([^"]+)"', re.MULTILINE)
"""An operation of a compiled program, and its name in JAX."""


def memory_in_use() -> dict[str, int]:
    """Bytes in use now and at most so far: of the fullest device of this process, or where the platform does not tell, as
    on CPUs, of the process itself (its resident set).

    Example:
      >>> sorted(memory_in_use())  # on a CPU
      ['resident_set_bytes', 'resident_set_peak_bytes']
    """
    devices = [stats for device in jax.local_devices() if (stats := _stats(device))]
    if devices:
        return {
            "device_memory_bytes": max(stats["bytes_in_use"] for stats in devices),
            "device_memory_peak_bytes": max(stats.get("peak_bytes_in_use", stats["bytes_in_use"]) for stats in devices),
        }
    status = Path("/proc/self/status")
    with contextlib.suppress(OSError):  # Linux only
        kilobytes = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return {
            "resident_set_bytes": int(kilobytes["VmRSS"].split()[0]) * 1024,
            "resident_set_peak_bytes": int(kilobytes["VmHWM"].split()[0]) * 1024,
        }
    return {}


def _stats(device: jax.Device) -> dict[str, Any] | None:
    try:
        return device.memory_stats()
    except jax.errors.JaxRuntimeError:  # the platform has none
        return None
