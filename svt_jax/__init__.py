"""Singular value transformations for transformer encoders in JAX.

The public names stand in `__init__.pyi`. Each is imported when it is first used: `import svt_jax` loads no other library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("svt_jax")
    except PackageNotFoundError:  # run from a folder where it is not installed
        return "unknown"


__version__ = _version()
