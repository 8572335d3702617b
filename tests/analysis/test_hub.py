"""Models go to a hub and come back: a fake one on loopback answers huggingface_hub's own client."""

import base64
import hashlib
import http.server
import json
import re
import threading

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import svt_jax
from svt_jax import cli
from svt_jax.data.demo import load_demo
from svt_jax.data.tokenizer import demo_tokenizer

SETTINGS = {
    "svt": {"function": "soft_decay", "layers": [-1], "alpha": -0.3},
    "optim": {"max_steps": 3, "batch_size": 16},
    "log": {"progress": False},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers that an upload of small files, and a download, need."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, values=None, status=200, content=b"", **headers):
        content = content if values is None else json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        hub.asked.append(self.path)
        if hub.refuses:
            self.answer({"error": "You don't have the rights to create a model"}, status=hub.refuses)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{hub.address}/{hub.repo}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            hub.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            hub.commits += 1
            self.answer({"commitUrl": f"{hub.address}/{hub.repo}/commit/{'a' * 40}", "commitOid": "a" * 40})

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        if hub.refuses:
            self.answer({"error": "Repository not found"}, status=404, X_Error_Code="RepoNotFound")
        elif path == f"/api/models/{hub.repo}/revision/main":
            self.answer({"id": hub.repo, "sha": "a" * 40, "siblings": []})
        elif "/tree/" in path:
            self.answer(
                [{"type": "file", "path": p, "size": len(b), "oid": "b" * 40} for p, b in sorted(hub.files.items())]
            )
        else:
            name = path.split("/resolve/")[-1].partition("/")[2]
            content = hub.files[name]
            etag = hashlib.sha1(content).hexdigest()
            self.answer(content=content, ETag=f'"{etag}"', X_Repo_Commit="a" * 40)

    do_HEAD = do_GET  # noqa: N815 (the server asks for this name)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running fake hub, which huggingface_hub takes for the real one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repo, server.files, server.asked, server.commits, server.refuses = "me/demo-svt", {}, [], 0, 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps with an SVT."""
    folder = tmp_path_factory.mktemp("runs")
    return svt_jax.train({**SETTINGS, "run": {"output_dir": str(folder), "name": "tiny"}})


def test_a_run_on_the_hub_is_loaded_by_its_id_with_its_svt_and_predicts_the_same(hub, run, tmp_path):
    url = svt_jax.push_to_hub(run, hub.repo, license="apache-2.0", token="hf_x")
    assert (url, hub.commits) == (f"{hub.address}/{hub.repo}", 1)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "spectrum.png"} <= hub.files.keys()
    demo = load_demo("test")
    pairs = list(zip(demo.first[:8], demo.second[:8], strict=True))
    found = svt_jax.predict(hub.repo, pairs)
    assert found.classes == ("unsupported", "supported")
    assert cli.evaluate(["export", f"--run={run.folder}", f"--output={tmp_path / 'model'}", "--svt=keep"]) == 0
    np.testing.assert_array_equal(found.probabilities, svt_jax.predict(tmp_path / "model", pairs).probabilities)
    assert svt_jax.load_classifier(hub.repo).encoder.svt_config.function == "soft_decay"


def test_the_card_tells_scores_settings_and_what_transformers_cannot_compute(hub, run):
    svt_jax.push_to_hub(run.folder, hub.repo, license="apache-2.0", token="hf_x")
    card = ModelCard(hub.files["README.md"].decode())
    data, text = card.data.to_dict(), " ".join(card.text.split())
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "svt_jax",
        "text-classification",
    )
    scores = run.results["metrics"]["validation"]
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == {
        name: round(value, 6) for name, value in scores.items()
    }
    alpha = run.results["svt"]["parameters"]["1"]["alpha"]["last"]
    for expected in (
        f"| accuracy | {scores['accuracy']:.4f} |", "with seed 0", "| function | `\"soft_decay\"` |",
        f"| alpha, layer 1 | -0.3000 at first, {alpha:.4f} after training |", "![Measures of", "](spectrum.png)",
        'svt_jax.predict("me/demo-svt", [(\'one text\', \'another text\')])', "transformers cannot compute the transformation",
        "Licence: apache-2.0", "The weights started from random values.", "`unsupported`, `supported`",
    ):  # fmt: skip
        assert expected in text, expected
    assert "None" not in text
    assert "{{" not in text
    assert not re.search(r"\n\n\n", card.text)


def test_an_encoder_and_a_model_folder_go_there_too_and_a_card_that_is_there_stays(hub, run, tmp_path):
    assert cli.evaluate(["export", f"--run={run.folder}", f"--output={tmp_path / 'model'}", "--svt=drop"]) == 0
    svt_jax.push_to_hub(tmp_path / "model", hub.repo, token="hf_x")
    text = hub.files["README.md"].decode()
    assert "svt_jax.predict(" in text
    assert "The base model is not recorded" in text
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    svt_jax.push_to_hub(tmp_path / "model", hub.repo, token="hf_x")
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\nmine"
    encoder = svt_jax.load_encoder(tmp_path / "model")
    with pytest.raises(ValueError, match="no tokenizer of its own"):
        svt_jax.push_to_hub(encoder, hub.repo)
    svt_jax.push_to_hub(encoder, hub.repo, tokenizer=demo_tokenizer(), token="hf_x")
    assert "svt_jax.embed(" in hub.files["README.md"].decode()


def test_the_command_pushes_what_it_exports(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    command = ["export", f"--run={run.folder}", f"--push={hub.repo}"]
    assert cli.evaluate(command) == 0
    assert capsys.readouterr().out == f"see {hub.address}/{hub.repo}\n"
    assert json.loads(hub.files["config.json"])["svt_jax"]["svt"]["function"] == "soft_decay"
    assert cli.evaluate([*command, "--svt=drop", f"--output={tmp_path / 'model'}"]) == 0
    assert (tmp_path / "model" / "config.json").read_bytes() == hub.files["config.json"]
    assert "The scores above are those of training, with the remedy" in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("gone", "the hub cannot be reached"),
        ("refused", "the hub refuses me/demo-svt .403.*hf auth login"),
        ("name", "'no such id!' is no id of the hub; allowed is USER/NAME"),
        ("nothing", "--output is missing; allowed are --output DIR, --push USER/NAME, or both"),
    ],
)
def test_a_hub_that_cannot_be_used_is_one_line(hub, run, capsys, monkeypatch, case, message):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    repo = "no such id!" if case == "name" else hub.repo
    if case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif case == "refused":
        hub.refuses = 403
    push = [] if case == "nothing" else [f"--push={repo}"]
    assert cli.evaluate(["export", f"--run={run.folder}", *push]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert hub.files == {}
