"""A user's own functions and remedies on the command line: a module or a file that registers them, by --plugin.

A run records its plugin's name in config.yaml and the digest of its file in the manifest. A command that reads the run
loads it from there. No code is ever taken from the run's own folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from svt_jax.spectral.registry import function_names

_loaded: set[str] = set()


def absolute(name: str) -> str:
    """The plugin's name as a run records it: a file's whole path, a module's name as it is."""
    return os.path.abspath(os.path.expanduser(name)) if _is_file(name) else name


def load_plugin(name: str) -> None:
    """Imports a module, or runs a file of Python, that registers functions; does nothing the second time.

    Raises:
      ValueError: if there is no such module or file, or it fails.
    """
    name = absolute(name)
    if name in _loaded:
        return
    if _is_file(name) and not os.path.isfile(name):
        raise ValueError(
            f"--plugin {name} does not exist; allowed is a module or a .py file that calls svt_jax.register_function. Check "
            "the path."
        )
    known = set(function_names())
    try:
        if _is_file(name):
            title = "svt_jax_plugin_" + hashlib.sha256(name.encode()).hexdigest()[:12]
            spec = importlib.util.spec_from_file_location(title, name)
            assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"  # noqa: PT018
            module = importlib.util.module_from_spec(spec)
            sys.modules[title] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        else:
            sys.path.append(os.getcwd())
            try:
                importlib.import_module(name)
            finally:
                sys.path.pop()
    except Exception as error:  # a user's code may raise anything
        raise ValueError(
            f"--plugin {name} cannot be loaded ({type(error).__name__}: {error}); allowed is a module or a .py file that "
            "calls svt_jax.register_function. Correct it."
        ) from error
    if known == set(function_names()):
        raise ValueError(
            f"--plugin {name} registers nothing; allowed is a module or a .py file that calls svt_jax.register_function. "
            "Add the call."
        )
    _loaded.add(name)


def plugin_digest(name: str | None) -> str | None:
    """SHA-256 of the plugin's file; None without a plugin, or if its code is in no file."""
    if name is None:
        return None
    if not _is_file(name):
        spec = importlib.util.find_spec(name) if name in sys.modules else None
        name = "" if spec is None or spec.origin is None else spec.origin
    return hashlib.sha256(Path(name).read_bytes()).hexdigest() if os.path.isfile(name) else None


def load_recorded(run: Path, config: dict[str, Any], digest: str | None) -> None:
    """Loads the plugin of a run, if this process does not know its function.

    Args:
      run: the run's folder, for messages.
      config: its config as plain values.
      digest: its plugin's digest, as in the manifest.
    Raises:
      ValueError: if the function is not known afterwards, or the plugin's file has changed since the run.
    """
    function = (config.get("svt") or {}).get("function", "none")
    if function in ("none", *function_names()):
        return
    name = (config.get("run") or {}).get("plugin")
    if name is None:
        raise ValueError(
            f"{run} has svt.function {function!r}, which is not registered here; allowed are {', '.join(function_names())}. "
            "Name the module or file that registers it by --plugin."
        )
    if _is_file(name) and not os.path.isfile(name):
        raise ValueError(
            f"{run} has svt.function {function!r} from the plugin {name}, which is not there; allowed is the file that the "
            "run used. Put it back, or name it by --plugin."
        )
    changed = ValueError(
        f"{run}: the plugin {name} has changed since the run, and with that its numbers; allowed is the file as it was. Put "
        "it back, or name the file to use by --plugin."
    )
    if _is_file(name) and digest not in (None, plugin_digest(name)):
        raise changed  # before it runs
    load_plugin(name)
    if digest not in (None, plugin_digest(name)):
        raise changed
    if function not in function_names():
        raise ValueError(
            f"{run} has svt.function {function!r}, which its plugin {name} does not register. Name another by --plugin."
        )


def _is_file(name: str) -> bool:
    return name.endswith(".py")
