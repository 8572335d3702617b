"""What a sentence-transformers folder says about its vectors: modules.json, and the settings of each module in it.

A folder has a Transformer, then a Pooling, then perhaps a Normalize. Anything else (Dense, weighted poolings, ...)
changes numbers in a way that is not computed here, and is refused.

References: Reimers and Gurevych, "Sentence-BERT", 2019, arXiv 1908.10084; the files are those of sentence-transformers 2 to 6.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np

from svt_jax.models.files import read_json
from svt_jax.text import listed, printable

_MODES = {  # in the order in which vectors of several modes follow one another
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
Mode = Literal["cls", "max", "mean"]
_SUPPORTED = ("cls", "max", "mean")
# Settings of the Transformer, with the only values for which they change nothing here.
_PLAIN = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """A folder's modules.

    Attributes:
      encoder: folder of config.json, weights and tokenizer.
      max_length: the most tokens of a sentence; None for the tokenizer's own limit.
      lower_case: whether text becomes lower case before its tokens are found.
    """

    encoder: Path
    max_length: int | None
    lower_case: bool
    _folder: Path
    _others: tuple[tuple[str, Path], ...]

    def lower_cased(self, tokenizer: Any) -> Any:
        """Makes the tokenizer lower the case of text where the folder wants it, and returns it."""
        if self.lower_case:
            from tokenizers.normalizers import Lowercase, Sequence

            backend = tokenizer.backend_tokenizer
            backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
        return tokenizer

    def after_encoder(self) -> tuple[list[Mode], bool, str]:
        """Returns how the last layer's states become a vector.

        Returns:
          The poolings ("cls", "max" and "mean") whose vectors follow one another; whether the result is divided by its
          norm; and a prompt that stands in front of each sentence.
        Raises:
          ValueError: if a module, or a setting of one, is not computed here.
        """
        kinds = [kind for kind, _ in self._others]
        if kinds not in (["Pooling"], ["Pooling", "Normalize"]):
            raise ValueError(
                f"{self._folder / 'modules.json'} has {listed(['Transformer', *kinds])}; read are Transformer, Pooling and "
                "Normalize, in this order. Name a pooling, as in pooling='mean', for vectors of the encoder itself."
            )
        path = self._others[0][1] / "config.json"
        settings = read_json(path)
        named = settings.get("pooling_mode") if isinstance(settings, dict) else path
        if named is None:
            named = [mode for key, mode in _MODES.items() if settings.get(key) is True] or ["mean"]
        modes = [named] if isinstance(named, str) else named
        if not isinstance(modes, list) or not modes or any(mode not in _SUPPORTED for mode in modes):
            raise ValueError(
                f"{path}: the pooling is {printable(str(modes))}; read are {', '.join(_SUPPORTED)}. "
                "Name a pooling, as in pooling='mean', for vectors of the encoder itself."
            )
        prompt = _default_prompt(self._folder / "config_sentence_transformers.json")
        if prompt and settings.get("include_prompt") is False:
            raise ValueError(
                f"{path}: include_prompt is false, which is not supported where there is a default prompt. "
                "Name a pooling, as in pooling='mean', for vectors of the encoder itself."
            )
        return cast(list[Mode], modes), "Normalize" in kinds, prompt


def read_modules(folder: Path) -> SentenceModules | None:
    """Reads the modules of a sentence-transformers folder; None if it has no modules.json.

    Raises:
      ValueError: if its files are damaged, or a setting of its Transformer is not supported.
    """
    index = folder / "modules.json"
    if not index.is_file():
        return None
    try:
        found = [(str(entry["type"]).rpartition(".")[2], _inside(folder, entry["path"])) for entry in read_json(index)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{index} is no list of modules with type and path. Download the model again.") from error
    if not found or found[0][0] != "Transformer":
        raise ValueError(
            f"{index} has {listed([kind for kind, _ in found]) or 'no modules'}; allowed is a Transformer first. "
            "Choose a model with an encoder of a supported family."
        )
    encoder = found[0][1]
    names = sorted(encoder.glob("sentence_*_config.json"))
    settings = read_json(names[0]) if names else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{names[0]} holds no table of settings. Download the model again.")
    settings.pop("unpad_inputs", None)  # another way to the same numbers
    length, lower = settings.pop("max_seq_length", None), settings.pop("do_lower_case", False)
    problems = [
        f"{name} is {printable(repr(value))}" for name, value in settings.items() if value and value != _PLAIN.get(name)
    ]
    if length is not None and (type(length) is not int or length < 1):
        problems.append(f"max_seq_length is {printable(repr(length))}")
    if problems:
        raise ValueError(
            f"{names[0]}: {listed(problems)}; read are max_seq_length and do_lower_case. "
            "Give an encoder (svt_jax.load_encoder) and a tokenizer, for vectors of your own settings."
        )
    return SentenceModules(encoder, length, bool(lower), folder, tuple(found[1:]))


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Divides each row by its norm, as torch.nn.functional.normalize does."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _inside(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(
            f"{folder / 'modules.json'} names {printable(path)}, which is not in it. Download the model again."
        )
    return folder / parts


def _default_prompt(path: Path) -> str:
    settings = read_json(path) if path.is_file() else {}
    name = settings.get("default_prompt_name") if isinstance(settings, dict) else None
    prompts = settings.get("prompts") if name is not None else None
    if name is not None and not (isinstance(prompts, dict) and isinstance(prompts.get(name), str)):
        raise ValueError(f"{path}: default_prompt_name is {printable(repr(name))}, and no prompt has it. Correct it.")
    return prompts[name] if prompts else ""
