"""The model card of a model folder: README.md with the hub's metadata, made from what a run and config.json say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svt_jax.data.glue import TASKS
from svt_jax.models.files import read_json
from svt_jax.text import printable

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from svt_jax.analysis.finished import FinishedRun

_TEMPLATE = Path(__file__).parent / "model_card.md"
_SETTINGS = ("function", "site", "layers", "placement", "solver", "mask_padding", "params")


def model_card(
    folder: Path,
    repo_id: str,
    *,
    run: FinishedRun | None = None,
    step: int | None = None,
    license: str | None = None,
    picture: str | None = None,
) -> ModelCard:
    """The card of a model folder.

    Args:
      folder: the model folder, with config.json.
      repo_id: where the model will be on the hub.
      run: the run that trained it; None if that is not known.
      step: the step whose weights these are.
      license: the hub's name of a licence, as apache-2.0; None says that the base model's applies.
      picture: name of a picture of the spectra beside the card.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = read_json(folder / "config.json")
    is_classifier = any("SequenceClassification" in name for name in config.get("architectures", ()))
    names = config.get("id2label") or {}
    classes = [str(names[str(n)]) for n in range(len(names)) if str(n) in names]
    svt = config.get("svt_jax", {}).get("svt")
    had_svt = svt or (run.config["svt"] if run and run.config["svt"]["function"] != "none" else None)
    scores = _scores(run, step)
    base = run.config["model"]["path"] if run else None
    base_id = base if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    data = ModelCardData(
        base_model=base_id,
        license=license,
        library_name="svt_jax" if svt else "transformers",
        pipeline_tag="text-classification" if is_classifier else "feature-extraction",
        tags=["svt_jax", "token-uniformity", *(["singular-value-transformation"] if svt else [])],
        metrics=sorted({name for name, _ in scores}) or None,
        model_name=repo_id.split("/")[-1] if scores else None,
        eval_results=_results(run, scores) if run and scores else None,
    )
    example = ["one text"] if _texts(run) == 1 else [("one text", "another text")]
    regression = len(classes) == 1
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=printable(repo_id.split("/")[-1]),
        repo_id=json.dumps(repo_id),
        summary=_summary(config, run, is_classifier=is_classifier),
        scores=[(name, f"{value:.4f}") for name, value in scores],
        split="the validation set"
        if not run or not run.config["data"].get("holdout")
        else "a held part of the training set",
        step=step,
        seed=run.config["run"]["seed"] if run else None,
        training=_training(run),
        svt_summary=_svt_summary(svt, had_svt),
        svt_settings=_svt_settings(had_svt, run),
        picture=picture,
        uses_svt=bool(svt),
        is_classifier=is_classifier,
        example=repr(example),
        shown="found.values" if regression else "found.labels, found.probabilities",
        auto_class="AutoModelForSequenceClassification" if is_classifier else "AutoModel",
        classes="" if regression else ", ".join(f"`{printable(name)}`" for name in classes),
        limits=_limits(svt, had_svt, has_scores=bool(scores)),
        origin=_origin(base, base_id, license),
    )
    card.content = re.sub(r"\n{3,}", "\n\n", card.content).rstrip() + "\n"  # parts that were left out leave empty lines
    return card


def _scores(run: FinishedRun | None, step: int | None) -> list[tuple[str, float]]:
    """Name and value of each score of the evaluation after this step."""
    for each in run.results.get("evaluations", ()) if run else ():
        if each["step"] == step:
            matched = list(each["metrics"].items())
            return matched + [(f"{name} (mismatched)", v) for name, v in each.get("validation_mismatched", {}).items()]
    return []


def _results(run: FinishedRun, scores: list[tuple[str, float]]) -> list[Any]:
    from huggingface_hub import EvalResult

    task = run.results["task"]
    is_glue = task in TASKS
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type="nyu-mll/glue" if is_glue else task,
            dataset_name=f"GLUE {TASKS[task].folder}" if is_glue else task,
            dataset_config=task if is_glue else None,
            dataset_split="validation_mismatched" if "(mismatched)" in name else "validation",
            metric_type=name.removesuffix(" (mismatched)"),
            metric_value=round(value, 6),
            metric_name=name,
        )
        for name, value in scores
    ]


def _texts(run: FinishedRun | None) -> int:
    if run is None:
        return 1
    task = run.results["task"]
    return len(TASKS[task].text) if task in TASKS else len(run.config["data"].get("text_columns") or ("story", "claim"))


def _summary(config: dict[str, Any], run: FinishedRun | None, *, is_classifier: bool) -> str:
    kind = f"A {config.get('model_type')} {'classifier' if is_classifier else 'encoder'}"
    size = f"of {config.get('num_hidden_layers', config.get('n_layers'))} layers and width {config.get('hidden_size', config.get('dim'))}"
    if run is None:
        return f"{kind} {size}, written by svt_jax."
    task = run.results["task"]
    where = f"GLUE's task {TASKS[task].folder}" if task in TASKS else f"the task {printable(run.task)}"
    return f"{kind} {size}, fine-tuned with svt_jax on {where}."


def _training(run: FinishedRun | None) -> list[tuple[str, str]]:
    if run is None:
        return []
    optim, data = run.config["optim"], run.config["data"]
    return [
        ("optimizer", f"AdamW, learning rate {optim['learning_rate']:g}, {optim['schedule']} schedule"),
        ("weight decay, warm-up", f"{optim['weight_decay']:g}, {optim['warmup_ratio']:g} of the steps"),
        ("batch", f"{optim['batch_size'] * optim['accumulate']} examples, of at most {data['max_length']} tokens"),
        ("steps", f"{run.results['steps']} ({run.results['epochs']:.2f} epochs)"),
        ("precision", run.config["model"]["dtype"]),
        ("device", str(run.results.get("device", "not recorded"))),
        ("svt_jax", str(run.manifest.get("versions", {}).get("svt_jax", "not recorded"))),
    ]


def _svt_summary(svt: dict[str, Any] | None, had: dict[str, Any] | None) -> str:
    if svt:
        return (
            f"The encoder holds the remedy `{svt['function']}` against token uniformity "
            "([Yan, Gui, Li, He, UAI 2022](https://arxiv.org/abs/2208.11790)). Its settings and learned parameters stand in "
            "config.json, in the section `svt_jax`."
        )
    if had:
        return f"The model was trained with the remedy `{had['function']}`, which is left out of these files."
    return "None: this is the plain architecture."


def _svt_settings(svt: dict[str, Any] | None, run: FinishedRun | None) -> list[tuple[str, str]]:
    if not svt:
        return []
    rows = [(name, f"`{json.dumps(svt[name])}`") for name in _SETTINGS if svt.get(name) not in (None, {})]
    found = run.results["svt"].get("parameters", {}) if run else {}
    for layer, parameters in found.items():
        for name, each in parameters.items():
            if isinstance(each["last"], float):
                rows.append(
                    (f"{name}, layer {layer}", f"{each['first']:.4f} at first, {each['last']:.4f} after training")
                )
    return rows


def _limits(svt: dict[str, Any] | None, had: dict[str, Any] | None, *, has_scores: bool) -> str:
    if svt:
        scores = " The scores above are those with the transformation." if has_scores else ""
        return (
            "transformers cannot compute the transformation: it ignores the section `svt_jax` and computes the plain model, with "
            "other numbers than svt_jax." + scores
        )
    if had:
        scores = "The scores above are those of training, with the remedy. " if has_scores else ""
        return scores + "These files hold the model without the remedy that it was trained with, so its numbers differ."
    return "transformers and svt_jax compute the same model, up to rounding."


def _origin(base: str | None, base_id: str | None, license: str | None) -> str:
    if base_id:
        start = f"Base model: [{base_id}](https://huggingface.co/{base_id})."
    elif base == "demo":
        start = "The weights started from random values."
    elif base:
        start = f"Base model: a folder named {printable(Path(base).name)}."
    else:
        start = "The base model is not recorded."
    return f"{start} Licence: {license or 'that of the base model'}."
