"""The files of weights: shards, the hub's cache, pickles that must not run, other precisions."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import svt_jax
from svt_jax.models.files import local_folder

IDS = np.random.default_rng(1).integers(0, 40, (2, 5)).astype(np.int32)


def test_a_path_that_is_nowhere_is_an_error():
    with pytest.raises(ValueError, match="is not a folder here, and no hub id; allowed are .* Check the path"):
        local_folder("no/such/model/folder")


@pytest.mark.parametrize(
    ("index", "words"),
    [({"x": "gone.safetensors"}, "files that are not beside it: gone.safetensors"), ({"x": "../a"}, "not beside it: .*/../a")],
)  # fmt: skip
def test_an_index_of_files_that_are_not_there_is_an_error(checkpoint, index, words):
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint)


def test_names_of_files_that_are_not_there_are_shortened_and_without_control_characters(checkpoint):
    names = {f"t{n}": f"{n}\x1b[31m" for n in range(500)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match="and 494 more") as raised:
        svt_jax.load_encoder(checkpoint)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_tensors_of_a_precision_that_is_not_read_are_named(checkpoint, kind):
    """A quantized model is such a case: without its scales the numbers mean something else."""
    name = "encoder.layer.0.output.dense.weight"
    header = json.dumps({name: {"dtype": kind, "shape": [12, 20], "data_offsets": [0, 240]}}).encode()
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(240))
    words = rf"precision that is not read: {name} \({kind}\); allowed are float32, .*Save the model in one of these"
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint)


def cached(tmp_path, monkeypatch, checkpoint, names):
    """A download cache in huggingface_hub's layout, with these files of the checkpoint."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--tiny-bert"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(checkpoint / name, snapshot / name)


def test_a_hub_id_is_read_from_the_cache_when_offline(tmp_path, monkeypatch, checkpoint):
    cached(tmp_path, monkeypatch, checkpoint, ["config.json", "model.safetensors"])
    loaded = svt_jax.load_encoder("owner/tiny-bert")
    assert np.array_equal(loaded(IDS).last_hidden_state, svt_jax.load_encoder(checkpoint)(IDS).last_hidden_state)
    with pytest.raises(
        ValueError, match="cache .*cache does not have it, and HF_HUB_OFFLINE is set.*hf download owner/o"
    ):
        svt_jax.load_encoder("owner/other")


def test_a_cache_without_weights_says_so(tmp_path, monkeypatch, checkpoint):
    cached(tmp_path, monkeypatch, checkpoint, ["config.json"])
    with pytest.raises(ValueError, match="has no model.safetensors .found: config.json."):
        svt_jax.load_encoder("owner/tiny-bert")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_the_hub_is_asked_for_pickles_only_where_there_is_nothing_else(tmp_path, monkeypatch, weights):
    import fnmatch

    import huggingface_hub

    downloaded = []

    def snapshot_download(name, allow_patterns):
        here = [
            file
            for file in (weights, "config.json", "onnx/model.onnx")
            if any(fnmatch.fnmatch(file, p) for p in allow_patterns)
        ]
        downloaded.append(here)
        for file in here:
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_folder("owner/tiny-bert") == tmp_path
    safe = [["model.safetensors", "config.json"]]
    assert downloaded == (safe if weights == "model.safetensors" else [["config.json"], ["pytorch_model.bin"]])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def malicious(checkpoint):
    """A checkpoint whose pickle creates a file when it is unpickled; returns (folder, that file)."""
    import pickle

    (checkpoint / "model.safetensors").unlink()
    trace = checkpoint / "it_ran"
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious(trace)}))
    pickle.loads((checkpoint / "pytorch_model.bin").read_bytes())["weight"].close()
    assert trace.exists()  # the pickle is malicious
    trace.unlink()
    return checkpoint, trace


def test_a_pickle_is_not_opened_without_pytorch(malicious, monkeypatch):
    folder, trace = malicious
    monkeypatch.setitem(sys.modules, "torch", None)  # simulates an environment without torch
    with pytest.raises(ValueError, match="PyTorch is not installed. Install it, or convert the model"):
        svt_jax.load_encoder(folder)
    assert not trace.exists()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [False, True])
def test_a_malicious_pickle_does_not_run(malicious, zipped):
    import torch

    folder, trace = malicious
    if zipped:
        torch.save({"weight": Malicious(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds more than tensors, or is damaged"):
        svt_jax.load_encoder(folder)
    assert not trace.exists()


@pytest.mark.parity
@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_files_give_the_same_model(checkpoint, sharded):
    import torch

    plain = svt_jax.load_encoder(checkpoint)(IDS)
    tensors = {name: torch.tensor(value) for name, value in load_file(checkpoint / "model.safetensors").items()}
    (checkpoint / "model.safetensors").unlink()
    half = len(tensors) // 2 if sharded else len(tensors)
    names = list(tensors)
    first = {n: torch.nn.Parameter(tensors[n]) for n in names[:half]}
    if sharded:
        torch.save(first, checkpoint / "pytorch_model-1.bin")
        torch.save({n: tensors[n] for n in names[half:]}, checkpoint / "pytorch_model-2.bin")
        where = {n: f"pytorch_model-{1 if n in first else 2}.bin" for n in names}
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        torch.save(first, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert np.array_equal(plain.last_hidden_state, svt_jax.load_encoder(checkpoint)(IDS).last_hidden_state)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("content", "words"), [(b"junk", "is damaged"), (b"", "is damaged"), ("list", "holds no table of tensors")]
)
def test_a_pytorch_file_that_is_none_is_an_error(checkpoint, content, words):
    import torch

    (checkpoint / "model.safetensors").unlink()
    if content == "list":
        torch.save([torch.zeros(2)], checkpoint / "pytorch_model.bin")
    else:
        (checkpoint / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        svt_jax.load_encoder(checkpoint)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64", "sparse"])
def test_pytorch_tensors_of_a_kind_that_is_not_read_are_named(checkpoint, dtype):
    import torch

    tensors = {n: torch.tensor(value) for n, value in load_file(checkpoint / "model.safetensors").items()}
    (checkpoint / "model.safetensors").unlink()
    name = "pooler.dense.weight"
    tensors[name] = tensors[name].to_sparse() if dtype == "sparse" else tensors[name].to(getattr(torch, dtype))
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=rf"precision that is not read: {name} \(torch.*{dtype}.*; allowed are float32"
    ):
        svt_jax.load_encoder(checkpoint)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_of_another_precision_are_read_as_float32(checkpoint, dtype):
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {
        n: torch.tensor(v).to(getattr(torch, dtype)) for n, v in load_file(checkpoint / "model.safetensors").items()
    }
    save_torch(tensors, checkpoint / "model.safetensors")
    first = svt_jax.load_encoder(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    second = svt_jax.load_encoder(checkpoint)
    expected = tensors["embeddings.word_embeddings.weight"].float().numpy()
    for encoder in (first, second):
        np.testing.assert_array_equal(encoder.embeddings.word.embedding[...], expected)
