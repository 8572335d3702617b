"""A custom task on protein sequences: ESM's own tokenizer, from its vocab.txt, trained and scored from the command line."""

import json

import numpy as np
import pytest
from flax import nnx

import svt_jax
from svt_jax import cli
from svt_jax.data.glue import Examples
from svt_jax.data.tokenizer import load_tokenizer, tokenize
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from tests.models import tiny

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
VOCABULARY = [
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    *AMINO_ACIDS,
    *"XBUZO.-",
    "<null_1>",
    "<mask>",
]  # ESM-2's, in its order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random ESM with ESM-2's vocabulary, as a checkpoint's folder has it: no tokenizer.json."""
    folder = tmp_path_factory.mktemp("model") / "esm"
    numbers = {
        "vocab_size": len(VOCABULARY),
        "mask_token_id": VOCABULARY.index("<mask>"),
        "max_position_embeddings": 64,
    }
    config = EncoderConfig.from_hf(tiny.fields("esm", **numbers, num_hidden_layers=1, token_dropout=True))
    svt_jax.export_hf(Encoder(config, rngs=nnx.Rngs(0)), folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}))
    return folder


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """Made sequences of 5 to 40 amino acids; those of one class have more of the water-avoiding ones."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("proteins")
    for split, number in (("train", 40), ("validation", 16)):
        lines = []
        for n in range(number):
            likely = np.where(np.isin(list(AMINO_ACIDS), list("AILMFVW")), 1.0 + 6.0 * (n % 2), 1.0)
            letters = rng.choice(list(AMINO_ACIDS), rng.integers(5, 41), p=likely / likely.sum())
            lines.append(f"{''.join(letters)}\t{('soluble', 'membrane')[n % 2]}\n")
        (folder / f"{split}.tsv").write_text("sequence\tplace\n" + "".join(lines))
    return folder


def test_a_letter_is_a_token_between_the_start_and_the_end(model):
    tokenizer = load_tokenizer(model, len(VOCABULARY))
    tokens = tokenize(Examples(["MKV", "MX"], None, None), tokenizer, 16, pad_id=1)
    names = [VOCABULARY[n] for n in tokens.flat_ids]
    assert names == ["<cls>", "M", "K", "V", "<eos>", "<cls>", "M", "X", "<eos>"]
    assert tokens.lengths.tolist() == [5, 4]


@pytest.mark.slow
def test_three_steps_from_the_command_line(model, proteins, tmp_path, capsys):
    options = ["--model.path", str(model), "--data.task", "custom", "--data.source", str(proteins)]
    options += ["--data.text_columns", "[sequence]", "--data.label_column", "place", "--data.max_length", "48"]
    options += ["--svt.function", "soft_decay", "--svt.placement", "output", "--optim.max_steps", "3"]
    options += ["--optim.batch_size", "8", "--run.output_dir", str(tmp_path), "--run.name", "run"]
    assert cli.train(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 3
    assert set(results["metrics"]["validation"]) == {"accuracy", "f1", "matthews_correlation"}
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["classes"] == ["membrane", "soluble"]
    capsys.readouterr()
    assert cli.evaluate(["glue", "--run", str(tmp_path / "run")]) == 0
    outcome = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (outcome["examples"], outcome["metrics"]) == (16, results["metrics"]["validation"])
