"""Models to the Hugging Face hub: weights, tokenizer, model card and a picture of the spectra in one commit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from svt_jax.analysis.finished import FinishedRun, read_finished
from svt_jax.analysis.model_card import model_card
from svt_jax.data.tokenizer import load_tokenizer
from svt_jax.evaluation.after_run import export, fit_tokenizer
from svt_jax.host import only_warns
from svt_jax.models.config import read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.export import export_hf
from svt_jax.models.files import weight_files
from svt_jax.models.heads import Classifier
from svt_jax.run.folder import save_tokenizer
from svt_jax.run.task_model import TaskModel
from svt_jax.stores import as_path
from svt_jax.text import printable

_PICTURE = "spectrum.png"


def push_to_hub(
    run_or_model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    checkpoint: str = "last",
    svt: Literal["keep", "drop"] = "keep",
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Uploads a model with its tokenizer and a model card, as one commit; makes the repository if there is none.

    `svt_jax.predict`, `load_classifier`, `load_encoder` and transformers then load it by `repo_id`.

    Args:
      run_or_model: a run (its folder, or what `svt_jax.train` returns), a model folder, or an encoder or classifier.
      repo_id: USER/NAME on the hub.
      tokenizer: for an encoder or classifier, which has none of its own.
      checkpoint: for a run: "last", "best", or a step's number.
      svt: for a run or a module with a transformation, as in `export_hf`. transformers cannot compute it.
      license: the hub's name of the licence, as "apache-2.0"; None says that the base model's applies.
      private: whether a new repository is private; None is the hub's default for the user.
      token: a token with write access; None takes the one of `hf auth login` or HF_TOKEN.
    Returns:
      The address of the model.
    Raises:
      ValueError: if the model cannot be read, `repo_id` is no id, or the hub cannot be reached or refuses.
    """
    check_repo(repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        run = step = None
        if isinstance(run_or_model, Encoder | Classifier):
            _write_module(run_or_model, tokenizer, folder, svt)
        else:
            source = as_path(getattr(run_or_model, "folder", run_or_model))
            if (source / "config.yaml").is_file():
                model = TaskModel.from_run(source, checkpoint=checkpoint)
                export(model, folder, svt=svt)
                step, run = model.step, _finished(source)
            else:
                _copy_model(source, folder)
        if not (folder / "README.md").exists():
            picture = _picture(run, folder)
            card = model_card(folder, repo_id, run=run, step=step, license=license, picture=picture)
            card.save(folder / "README.md")
        return _upload(folder, repo_id, private, token)


def check_repo(repo_id: str) -> None:
    """Raises ValueError unless this can be a repository's id, and the hub may be reached."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{printable(str(repo_id))!r} is no id of the hub; allowed is USER/NAME. Correct it."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"nothing was sent to {repo_id}: HF_HUB_OFFLINE is set; allowed is a hub that can be reached. Unset it, or write a "
            "folder with eval.py export --output."
        )


def _upload(folder: Path, repo_id: str, private: bool | None, token: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by svt_jax")
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = "Log in with hf auth login, or check the token" if status in (401, 403) else "Check the id and try again"
        reason = printable(str(error.server_message or error).partition("\n")[0])
        raise ValueError(
            f"the hub refuses {repo_id} ({status}: {reason}); allowed is a repository of yours. {what}."
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"the hub cannot be reached ({type(error).__name__}: {printable(str(error))}), so nothing was sent to {repo_id}; allowed "
            "is a connection to it. Check the network and HF_ENDPOINT, or write a folder with eval.py export --output."
        ) from error
    return str(url)


def _write_module(module: Encoder | Classifier, tokenizer: Any, folder: Path, svt: Literal["keep", "drop"]) -> None:
    if tokenizer is None:
        raise ValueError("a module has no tokenizer of its own, and a model on the hub needs one. Give tokenizer=.")
    encoder = module.encoder if isinstance(module, Classifier) else module
    export_hf(module, folder, svt=svt if encoder.svt_config.enabled else None)
    save_tokenizer(fit_tokenizer(tokenizer, encoder.config), folder)


_NO_MODEL = ("*.lock", "*.tmp", "runs", ".*", "__pycache__")


def _copy_model(source: Path, folder: Path) -> None:
    """A copy of a model folder, after a look that it is one."""
    if not source.is_dir() or not (source / "config.json").is_file():
        raise ValueError(
            f"{source} holds neither a run (config.yaml) nor a model (config.json); allowed is a folder of either, as train.py or "
            "eval.py export writes it. Check the path."
        )
    config = read_config(source)
    weight_files(source)
    load_tokenizer(source, config.vocab_size)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_NO_MODEL))


def _finished(folder: Path) -> FinishedRun | None:
    return read_finished(folder) if (folder / "results.json").is_file() else None


def _picture(run: FinishedRun | None, folder: Path) -> str | None:
    """Draws the run's last reading beside the model; returns the file's name, None if there is no reading."""
    if run is None or not run.readings:
        return None
    with only_warns("the picture of the spectra"):
        from svt_jax.analysis import plots

        with tempfile.TemporaryDirectory() as temporary:
            plots.save({"spectrum": plots.measures_by_depth({run.name: [run.readings[-1]]})}, Path(temporary))
            shutil.copy(Path(temporary) / _PICTURE, folder / _PICTURE)
        return _PICTURE
    return None
