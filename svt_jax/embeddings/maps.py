r"""Transformations of a whole set of embeddings: fit on a stream, apply to any row, seen or new.

For an embedding matrix E [N, D] = U diag(sigma) V^T the transformation is a fixed matrix on the right,

    F(E) = U diag(phi(sigma)) V^T = E M,     M = V diag(phi(sigma)/sigma) V^T,

M depends only on E^T E. So a fit needs O(D^2) memory for any number of rows, new rows can be transformed after it, and
M is a dense layer without bias.

`moments.py` computes E^T E, in float64.

References:
  Whitening: Su et al., "Whitening sentence representations for better semantics and faster retrieval", 2021,
  arXiv 2103.15316, algorithm 1. All-but-the-top: Mu, Viswanath, ICLR 2018, arXiv 1702.01417, algorithm 1.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.embeddings.map_files import replacing, saved_kind, write_dense
from svt_jax.embeddings.moments import moments, one_blas_thread
from svt_jax.spectral import functions
from svt_jax.spectral.base import SpectralFunction
from svt_jax.spectral.solvers import product
from svt_jax.stores import local_path

Array = jax.Array


@jax.jit
def _affine(rows: Array, matrix: Array, offset: Array) -> Array:
    return (product(rows.astype(jnp.float32), matrix) + offset).astype(rows.dtype)


@jax.jit
def _evaluate(function: SpectralFunction, values: Array, spectrum: Array) -> Array:
    return function(values, spectrum)


def _matrix(x: Any) -> Any:
    """The rows of an iterable as one array; an array as it is."""
    return x if hasattr(x, "shape") else np.asarray(list(x))


class CorpusMap(abc.ABC):
    """What the maps of this file share: running moments, and the affine map x -> x matrix + offset that follows.

    Attributes:
      count: rows seen so far.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.count = 0
        self._gram, self._sum = np.zeros((0, 0)), np.zeros(0)
        self._map: tuple[Array, Array] | None = None

    def fit(self, batches: Any) -> Self:
        """Forgets what was seen, then sees one matrix [N, D], or every matrix [n, D] of an iterable.

        A list of rows, as from `tolist`, is also one matrix. An iterable is read once.
        """
        self._forget()
        matrices: Iterable[Any] = batches
        if hasattr(batches, "shape") or (isinstance(batches, list) and batches and np.ndim(batches[0]) == 1):
            matrices = [batches]
        for matrix in matrices:
            self.partial_fit(matrix)
        return self

    def partial_fit(self, x: Any) -> Self:
        """Sees the rows of one more matrix.

        Args:
          x: real[n, D], finite, or an iterable of rows; see `moments.moments` for its types and its memory.
        Raises:
          ValueError: if it is not a matrix, has another width than before, or holds numbers that are not finite.
        """
        x = _matrix(x)
        shape, width = tuple(np.shape(x)), len(self._sum)
        if len(shape) != 2 or shape[1] == 0 or (width and shape[1] != width):
            raise ValueError(f"rows must come as [n, {width or 'D'}], got {list(shape)}. Reshape them.")
        gram, total = moments(x)
        if not np.isfinite(gram).all():
            raise ValueError(
                "the rows hold numbers that are not finite, or whose squares are not. Leave those rows out."
            )
        if width:
            gram, total = self._gram + gram, self._sum + total
        self._gram, self._sum, self._map = gram, total, None
        self.count += shape[0]
        return self

    @abc.abstractmethod
    def _affine_map(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix [D, K], offset [K]) in float64, from the moments."""

    def _fitted(self) -> tuple[Array, Array]:
        if self.count == 0:
            raise ValueError(f"this {type(self).__name__} has seen no rows. Call fit or partial_fit first.")
        if self._map is None:
            with one_blas_thread():
                matrix, offset = self._affine_map()
            self._map = jnp.asarray(matrix, jnp.float32), jnp.asarray(offset, jnp.float32)
        return self._map

    @property
    def matrix(self) -> Array:
        """float32[D, K], what rows are multiplied by."""
        return self._fitted()[0]

    @property
    def offset(self) -> Array:
        """float32[K], what is then added to each row."""
        return self._fitted()[1]

    def transform(self, x: Any) -> Array:
        """Maps rows [..., D], seen or new, to [..., K], in their dtype; integers come back as float32."""
        x = jnp.asarray(_matrix(x))
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        matrix, offset = self._fitted()
        if x.shape[-1] != matrix.shape[0]:
            raise ValueError(f"rows must have {matrix.shape[0]} columns as in the fit, got {list(x.shape)}.")
        return _affine(x, matrix, offset)

    @abc.abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What `__init__` needs, as plain JSON."""

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Self:
        return cls(**settings)

    def save(self, folder: str | Path) -> None:
        """Writes the moments and settings, from which `load` can transform and go on fitting.

        Raises:
          ValueError: if the folder holds anything but an earlier save of this kind of map, which is replaced; if it cannot
            be written; or for a map whose function is not svt_jax's own.
        """
        kind, folder = type(self).__name__, local_path(folder)
        saved = {"kind": kind, "settings": self._settings()}
        with replacing(folder, kind, saved_kind(folder), ("moments.npz", "map.json")):
            np.savez(folder / "moments.npz", gram=self._gram, sum=self._sum, count=self.count)
            (folder / "map.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
          ValueError: if the folder holds no map, or one of another kind.
        """
        folder = local_path(folder)
        kind = saved_kind(folder)
        if kind is None:
            raise ValueError(f"{folder} holds no saved map (no map.json that names one). Check the path.")
        if kind != cls.__name__:
            raise ValueError(f"{folder} holds a {kind}, not a {cls.__name__}. Use {kind}.load.")
        loaded = cls._from_settings(json.loads((folder / "map.json").read_text(encoding="utf-8"))["settings"])
        with np.load(folder / "moments.npz") as arrays:
            loaded._gram, loaded._sum, loaded.count = arrays["gram"], arrays["sum"], int(arrays["count"])
        return loaded

    def export_sentence_transformers(self, folder: str | Path) -> None:
        r"""Writes the map as a Dense module of sentence-transformers: y = x W^T + b, W = matrix^T [K, D], b = offset [K].

        A SentenceTransformer takes the module, `Dense.load(folder)`, after its pooling; it computes the vectors of
        `transform`. A zero offset, as in a SpectralMap, leaves out the bias. Writing it needs no PyTorch.

        Args:
          folder: made if it does not exist; config.json and model.safetensors are written.
        Raises:
          ValueError: if no rows were seen, if the folder holds anything but an earlier export of this kind of map, which
            is replaced, or if it cannot be written.

        Example:
          >>> import tempfile, numpy as np, svt_jax
          >>> from safetensors.numpy import load_file
          >>> folder = tempfile.mkdtemp()
          >>> rows = np.random.default_rng(0).normal(size=(50, 8))
          >>> svt_jax.Whitening(dim=3).fit(rows).export_sentence_transformers(folder)
          >>> {name: tensor.shape for name, tensor in load_file(folder + "/model.safetensors").items()}
          {'linear.bias': (3,), 'linear.weight': (3, 8)}

        References:
          sentence_transformers/base/modules/dense.py, version 6.2.
        """
        matrix, offset = self._fitted()
        write_dense(local_path(folder), type(self).__name__, np.asarray(matrix), np.asarray(offset))

    def _covariance(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns eigenvalues (descending) and eigenvectors of the covariance, and the mean."""
        mean = self._sum / self.count
        values, vectors = np.linalg.eigh(self._gram / self.count - np.outer(mean, mean))
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1], mean


class SpectralMap(CorpusMap):
    r"""A spectral function applied to the singular values of a whole embedding matrix: x -> x M, see this file's head.

    Args:
      function: any spectral function; its parameters are constants here. One that does not vanish at zero keeps null
        directions null: those with sigma_i <= 1e-7 sigma_1, float32's own resolution of the rows.

    Raises:
      ValueError: if function is no spectral function.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> embeddings = jnp.array([[3.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
      >>> function = svt_jax.SoftDecay(alpha=-0.6, centered=True)
      >>> fitted = svt_jax.SpectralMap(function).fit(embeddings)
      >>> bool(jnp.allclose(fitted.transform(embeddings), svt_jax.svt(embeddings, function), atol=1e-4))
      True
    """

    def __init__(self, function: SpectralFunction):
        if not isinstance(function, SpectralFunction):
            raise ValueError(
                f"a SpectralMap needs a spectral function, got {type(function).__name__}. Whitening and AllButTheTop are "
                "maps of their own; other token operations have no meaning for a whole set."
            )
        super().__init__()
        self.function = function

    def _affine_map(self) -> tuple[np.ndarray, np.ndarray]:
        squares, v = np.linalg.eigh(self._gram)
        sigma = np.sqrt(np.maximum(squares, 0.0))
        live = sigma > 1e-7 * sigma.max()
        with jax.enable_x64(True):
            function = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), self.function)
            spectrum = jnp.asarray(np.where(live, sigma, 0.0))
            new = np.asarray(_evaluate(function, spectrum, spectrum))
            if self.function.vanishes_at_zero:  # the slope at zero, in directions without rows
                tiny = jnp.full_like(spectrum, 1e-9) * sigma.max()
                live, new = np.ones_like(live), np.where(live, new, np.asarray(_evaluate(function, tiny, spectrum)))
                sigma = np.where(spectrum > 0, sigma, np.asarray(tiny))
        ratio = np.where(live, new / np.where(live & (sigma > 0), sigma, 1.0), 0.0)
        return (v * ratio) @ v.T, np.zeros(len(sigma))

    def _settings(self) -> dict[str, Any]:
        name = type(self.function).__name__
        if getattr(functions, name, None) is not type(self.function):
            raise ValueError(
                f"a map with the function {name}, which is not svt_jax's own, cannot be saved. Save its matrix."
            )
        values = {f.name: getattr(self.function, f.name) for f in dataclasses.fields(self.function)}
        return {"function": name, "parameters": {k: v if isinstance(v, bool) else float(v) for k, v in values.items()}}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Self:
        return cls(getattr(functions, settings["function"])(**settings["parameters"]))


class Whitening(CorpusMap):
    r"""Makes the covariance the identity: x -> (x - mean) U Lambda^{-1/2}[:, :dim], covariance = U Lambda U^T.

    Directions whose variance is below 1e-12 of the largest are left out (they map to 0): their inverse root is noise.
    Su et al. divide the covariance's sum by n - 1, and the code of arXiv 2208.11790 does not divide it; here it is divided
    by n. Their vectors are ours times one constant.

    Args:
      dim: number of directions kept, those of largest variance; None keeps all.

    Raises:
      ValueError: on use, if fewer rows than directions were seen, or dim is larger than D.

    Example:
      >>> import jax, jax.numpy as jnp, svt_jax
      >>> x = jax.random.normal(jax.random.key(0), (200, 3)) * jnp.array([5.0, 1.0, 0.1]) + 7.0
      >>> white = svt_jax.Whitening().fit(x).transform(x)
      >>> bool(jnp.allclose(jnp.cov(white.T, bias=True), jnp.eye(3), atol=1e-2))
      True

    References:
      arXiv 2103.15316, algorithm 1.
    """

    def __init__(self, dim: int | None = None):
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, or None for all; got {dim}.")
        self.dim = dim

    def _affine_map(self) -> tuple[np.ndarray, np.ndarray]:
        width = len(self._sum)
        dim = width if self.dim is None else self.dim
        if dim > width or self.count < dim:
            raise ValueError(
                f"whitening to {dim} dimensions needs at least so many columns and rows; there are {width} and {self.count}. "
                "Fit on more rows, or choose a smaller dim."
            )
        variances, u, mean = self._covariance()
        kept = variances > 1e-12 * variances[0]
        matrix = (u * np.where(kept, 1.0 / np.sqrt(np.where(kept, variances, 1.0)), 0.0))[:, :dim]
        return matrix, -mean @ matrix

    def _settings(self) -> dict[str, Any]:
        return {"dim": self.dim}


class AllButTheTop(CorpusMap):
    r"""Removes the mean and the directions of largest variance: x -> (x - mean)(I - sum_{i <= directions} u_i u_i^T).

    The source's algorithm, and most public code, projects x and not x - mean: x - mean - sum_i (u_i^T x) u_i. All its
    vectors differ from ours by one vector, sum_i (u_i^T mean) u_i: distances are equal, cosines are not. Our mean is 0.

    Args:
      directions: number of directions removed; None means D/100, at least 1, as the authors advise.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> x = jnp.array([[9.0, 1.0], [-9.0, 1.0], [9.0, -1.0], [-9.0, -1.0]])
      >>> svt_jax.AllButTheTop(directions=1).fit(x).transform(x).round(3)[:2]
      Array([[0., 1.],
             [0., 1.]], dtype=float32)

    References:
      arXiv 1702.01417, algorithm 1.
    """

    def __init__(self, directions: int | None = None):
        super().__init__()
        if directions is not None and directions < 0:
            raise ValueError(f"directions must be at least 0, or None for D/100; got {directions}.")
        self.directions = directions

    def _affine_map(self) -> tuple[np.ndarray, np.ndarray]:
        _, u, mean = self._covariance()
        top = u[:, : max(1, len(mean) // 100) if self.directions is None else self.directions]
        matrix = np.eye(len(mean)) - top @ top.T
        return matrix, -mean @ matrix

    def _settings(self) -> dict[str, Any]:
        return {"directions": self.directions}
