"""Maps on disk: sentence-transformers loads them and returns the same vectors; other files are not overwritten."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import svt_jax

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(300, 12)) * np.geomspace(5, 0.2, 12) + 1.0).astype(np.float32)
MAPS = [
    svt_jax.SpectralMap(svt_jax.SoftDecay(alpha=-0.6, centered=True)),
    svt_jax.Whitening(),
    svt_jax.Whitening(dim=5),
    svt_jax.AllButTheTop(),
]
KINDS = ["SpectralMap", "Whitening", "Whitening5", "AllButTheTop"]
SENTENCES = [
    "A cat sits on the mat.",
    "Two dogs run in the park.",
    "The committee postponed its decision.",
    "Prices rose by three percent last year.",
    "She plays the violin.",
    "It rained all night in the valley, and in the morning the river had left its bed.",
    "No.",
    "The recipe needs two eggs and a cup of flour.",
    "Trains to the coast leave every hour.",
    "He never answered the letter.",
]


@pytest.mark.parametrize("fitted", MAPS, ids=KINDS)
def test_the_export_holds_the_affine_map(tmp_path, fitted):
    fitted.fit(ROWS).export_sentence_transformers(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(tensors["linear.weight"], np.asarray(fitted.matrix).T)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["out_features"], config["in_features"]) == tensors["linear.weight"].shape
    assert config["bias"] == ("linear.bias" in tensors) == (type(fitted) is not svt_jax.SpectralMap)


@pytest.mark.slow  # sentence-transformers takes 7 s to import
@pytest.mark.parity
@pytest.mark.parametrize("fitted", MAPS, ids=KINDS)
def test_sentence_transformers_loads_the_export_and_gives_the_same_vectors(tmp_path, fitted):
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    fitted.fit(ROWS).export_sentence_transformers(tmp_path)
    with torch.no_grad():
        out = Dense.load(str(tmp_path))({"sentence_embedding": torch.tensor(ROWS)})["sentence_embedding"]
    assert out.shape[1] == fitted.matrix.shape[1]
    np.testing.assert_allclose(out.numpy(), fitted.transform(ROWS), rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # sentence-transformers takes 7 s to import
@pytest.mark.parity
@pytest.mark.model
def test_a_sentence_transformer_ends_in_the_export(tmp_path, minilm):
    """Its pipeline, saved and loaded again, equals our encoder, mean pooling and `transform`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    plain = SentenceTransformer(modules=[Transformer(str(minilm)), Pooling(384)], device="cpu")
    tokens = {name: tensor.numpy() for name, tensor in plain.preprocess(SENTENCES).items() if name != "modality"}
    hidden = svt_jax.load_encoder(minilm)(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    mask = jnp.asarray(tokens["attention_mask"], jnp.float32)[..., None]
    embeddings = jnp.sum(hidden * mask, axis=1) / jnp.sum(mask, axis=1)
    np.testing.assert_allclose(embeddings, plain.encode(SENTENCES), atol=1e-5)

    fitted = svt_jax.Whitening(dim=8).fit(embeddings)
    fitted.export_sentence_transformers(tmp_path / "dense")
    pipeline = SentenceTransformer(modules=[*plain, Dense.load(str(tmp_path / "dense"))], device="cpu")
    pipeline.save(str(tmp_path / "pipeline"))
    loaded = SentenceTransformer(str(tmp_path / "pipeline"), device="cpu")
    np.testing.assert_allclose(loaded.encode(SENTENCES), fitted.transform(embeddings), atol=2e-4)


def test_an_earlier_file_of_the_same_kind_is_replaced(tmp_path):
    first, second = svt_jax.Whitening(dim=3).fit(ROWS), svt_jax.Whitening(dim=7).fit(ROWS)
    for fitted in (first, second):
        fitted.export_sentence_transformers(tmp_path / "dense")
        fitted.save(tmp_path / "map")
    assert load_file(tmp_path / "dense" / "model.safetensors")["linear.weight"].shape == (7, 12)
    assert svt_jax.Whitening.load(tmp_path / "map").dim == 7


@pytest.mark.parametrize("write", ["save", "export_sentence_transformers"])
def test_another_kind_or_foreign_files_are_never_overwritten(tmp_path, write):
    fitted = svt_jax.Whitening().fit(ROWS)
    getattr(svt_jax.AllButTheTop().fit(ROWS), write)(tmp_path / "other")
    (tmp_path / "foreign").mkdir()
    for name in ("config.json", "map.json"):  # as another program's model has them
        (tmp_path / "foreign" / name).write_text('{"in_features": 12}')
    getattr(fitted, write)(tmp_path / "beside")
    (tmp_path / "beside" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("other", "foreign", "beside"):
        with pytest.raises(
            ValueError, match=f"{name} holds .*; allowed are a new or empty folder, or only .* Whitening"
        ):
            getattr(fitted, write)(tmp_path / name)
    with pytest.raises(ValueError, match="file cannot be written"):
        getattr(fitted, write)(tmp_path / "file")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_map_without_rows_leaves_no_export(tmp_path):
    with pytest.raises(ValueError, match="has seen no rows"):
        svt_jax.Whitening().export_sentence_transformers(tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
