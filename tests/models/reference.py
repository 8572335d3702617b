"""PyTorch's numbers for a tiny random model: live for parity tests, and stored for tests without PyTorch.

python tests/models/reference.py [family ...]     # writes golden/*.npz anew; needs the [parity] extra
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import tiny

from svt_jax.models.families import FAMILIES

GOLDEN = Path(__file__).parent / "golden"

# The stored models: one for each family, each with a feature that the others lack.
STORED = {
    "bert": {"hidden_act": "gelu", "type_vocab_size": 2, "num_labels": 3},
    "roberta": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "num_labels": 1},
    "distilbert": {"hidden_act": "relu", "num_labels": 2},
    "albert": {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2, "num_labels": 3},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": 2},
    "camembert": {"type_vocab_size": 1, "num_hidden_layers": 1, "num_labels": 3},
    "electra": {"embedding_size": 8, "num_labels": 2},
    "modernbert": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "local_attention": 6,
        "pooling": "mean",
        "norm_bias": True,
        "num_labels": 3,
    },
    "nomic_bert": {"num_labels": 2},
    "gte": {"type_vocab_size": 1, "num_labels": 3},
    "esm": {"token_dropout": True, "embedding_norm": True, "num_labels": 2},
    "mpnet": {"num_labels": 3},
}
LENGTH = 16


def inputs(values: dict, seed: int) -> dict[str, np.ndarray]:
    """Inputs of the model's full length, with rows of half that and of one real token; padding is the pad token."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[LENGTH], [LENGTH // 2], [1], [LENGTH - 1]])
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    ids = np.where(mask, rng.integers(3, values["vocab_size"], mask.shape), values.get("pad_token_id", 1))
    return {"ids": ids, "mask": mask, "types": rng.integers(0, values.get("type_vocab_size") or 1, mask.shape)}


def fields(family: str, **changes: object) -> dict:
    """A config.json of that family whose longest sequence is LENGTH."""
    pad = tiny.PADDING.get(family, 0)
    counted = family not in ("gte", "esm") or changes.get("positions") == "absolute"
    extra = {"max_position_embeddings": LENGTH + 2} if pad and counted else {}
    if "pad_token_id" in FAMILIES[family].fields:
        extra["pad_token_id"] = pad
    return tiny.fields(family, **{**extra, **changes})


def compute(values: dict, num_labels: int, seed: int, given: dict | None = None) -> dict[str, np.ndarray]:
    """The classifier's weights, inputs, hidden states, pooled output, logits, and gradients of sum(logits * cotangent).

    `given` takes the place of `inputs(values, seed)`.
    """
    import torch
    import transformers

    # eager: its masked rows without any key are as ours; SDPA has zeros there
    config = transformers.AutoConfig.for_model(**values, attn_implementation="eager")
    config.num_labels = num_labels
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    base = transformers.AutoModel.from_config(config).eval()  # RoBERTa's classifier has no pooler
    for name, parameter in [*base.named_parameters(), *model.named_parameters()]:
        norm = name.lower().endswith("norm.weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)  # also biases and norms
    prefix = f"{model.base_model_prefix}."
    base.load_state_dict(model.base_model.state_dict(), strict=False)
    given = inputs(values, seed) if given is None else given
    arguments = {"input_ids": torch.tensor(given["ids"]), "attention_mask": torch.tensor(given["mask"])}
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        arguments["token_type_ids"] = torch.tensor(given["types"])
    with torch.no_grad():
        out = base(**arguments, output_hidden_states=True)
    logits = model(**arguments).logits
    cotangent = np.random.default_rng(seed + 1).normal(size=logits.shape).astype(np.float32)
    if "local_attention" in values:  # blocks of sliding attention have no gradient of padding that attends to no key
        cotangent *= given["mask"][:, :1]
    (logits * torch.tensor(cotangent)).sum().backward()

    weights = {prefix + name: p for name, p in base.named_parameters()} | dict(model.named_parameters())
    arrays = {f"w/{name}": p.detach().numpy() for name, p in weights.items()}
    arrays |= {f"grad/{name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    arrays |= {f"state/{n}": state.numpy() for n, state in enumerate(out.hidden_states)}
    if getattr(out, "pooler_output", None) is not None:
        arrays["pooled"] = out.pooler_output.numpy()
    small = {name: array.astype(np.int32) for name, array in given.items()}
    arrays |= {**small, "logits": logits.detach().numpy(), "cotangent": cotangent}
    return {**arrays, "config_json": np.array(json.dumps(values))}


def main() -> None:
    import transformers

    GOLDEN.mkdir(exist_ok=True)
    for family, changes in STORED.items():
        if len(sys.argv) > 1 and family not in sys.argv[1:]:
            continue
        values = {name: value for name, value in changes.items() if name != "num_labels"}
        arrays = compute(fields(family, **values), changes["num_labels"], seed=0)
        np.savez_compressed(GOLDEN / f"{family}.npz", made_with=np.array(transformers.__version__), **arrays)


if __name__ == "__main__":
    sys.exit(main())
