"""Paths in object stores, on servers of this machine: what is written, listed, moved, copied, refused and waited for."""

import importlib.util
import json
import os
import time

import pytest

from svt_jax.run.line_files import LineFile, join_parts, read_all, read_lines
from svt_jax.stores import (
    StoreError,
    as_path,
    calls,
    check_reachable,
    in_store,
    local_path,
    move,
    paths,
    readable,
    remove,
    writable,
)
from svt_jax.writing import write_whole
from tests.stores.servers import free_port

DOWN = (503, b'{"error": {"code": 503, "message": "backendError"}}')
FULL = (403, b'{"error": {"code": 403, "message": "quotaExceeded"}}')
FULL_S3 = (403, b"<Error><Code>QuotaExceeded</Code><Message>the quota is used up</Message></Error>")


def full(server):
    return FULL if server.scheme == "gs" else FULL_S3


def down(server):
    return DOWN if server.scheme == "gs" else (503, b"<Error><Code>ServiceUnavailable</Code></Error>")


def test_a_path_is_what_was_written():
    path = as_path("gs://bucket//runs/demo/") if importlib.util.find_spec("gcsfs") else pytest.skip("needs gcsfs")
    assert str(path) == f"{path}" == "gs://bucket/runs/demo"
    assert str(path / "a" / "b.json") == "gs://bucket/runs/demo/a/b.json"
    assert (path.name, str(path.parent), path.scheme) == ("demo", "gs://bucket/runs", "gs")
    assert path == as_path("gs://bucket/runs/demo") != as_path("gs://bucket/runs")
    assert as_path(path) is path
    assert in_store(path)
    assert not in_store(as_path("runs/demo"))
    assert not in_store(as_path("~/gs:/odd"))
    with pytest.raises(TypeError, match="needs a local path"):
        os.fspath(path)
    with pytest.raises(ValueError, match="lies in an object store; allowed is a local path"):
        local_path("gs://bucket/a")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("az://bucket/a", "begins with az://"),
        ("https://example.org/a", "begins with https://"),
        ("gs://", "is no path in a store"),
        ("gs:///a", "is no path in a store"),
        ("gs://bucket/../b", "without . and .."),
        ("s3://bucket/lr-[1e-5]", "without [ ] * ? #"),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(written, said):
    with pytest.raises(ValueError) as error:
        as_path(written)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_package_is_one_line_that_names_the_command(monkeypatch, scheme, package, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))
    with pytest.raises(ValueError) as error:
        as_path(f"{scheme}://bucket/a")
    assert str(error.value) == (
        f"{scheme}://bucket/a needs the package {package}, which is not installed. Install it: pip install 'svt_jax[{extra}]'."
    )


def test_objects_are_written_whole_listed_and_removed(folder):
    assert not folder.exists()
    assert list(folder.iterdir()) == []
    write_whole(folder / "a.json", '{"é": 1}')
    (folder / "sub" / "b").write_bytes(b"12")
    (folder / "sub-2" / "b").write_bytes(b"123")
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "a.json").is_file()
    assert not (folder / "a.js").exists()
    assert json.loads((folder / "a.json").read_text()) == {"é": 1}
    assert [path.name for path in folder.iterdir()] == ["a.json", "sub", "sub-2"]
    assert {name: info["size"] for name, info in folder.objects().items()} == {"a.json": 9, "sub/b": 2, "sub-2/b": 3}
    move(folder / "sub", folder / "new")
    assert (folder / "new" / "b").read_bytes() == b"12"
    assert list(folder.objects()) == ["a.json", "new/b", "sub-2/b"]
    remove(folder / "new")
    (folder / "a.json").unlink()
    (folder / "a.json").unlink(missing_ok=True)
    assert list(folder.objects()) == ["sub-2/b"]


def test_an_object_is_created_once(folder):
    (folder / "lock").create(b"1")
    with pytest.raises(FileExistsError):
        (folder / "lock").create(b"2")
    assert (folder / "lock").read_bytes() == b"1"


def test_local_folders_come_from_and_go_to_a_store(folder, tmp_path):
    with writable(folder) as local:
        (local / "sub").mkdir()
        (local / "sub" / "a").write_text("1")
        (local / "config.json").write_text("2")
    assert list(folder.objects()) == ["config.json", "sub/a"]
    copy = readable(folder, tmp_path)
    assert (copy / "sub" / "a").read_text() == "1"
    assert readable(folder, tmp_path) == copy
    (folder / "sub" / "a").write_text("3")
    assert (readable(folder, tmp_path) / "sub" / "a").read_text() == "3"
    assert [path.name for path in readable(folder, tmp_path, lambda name: name == "config.json").iterdir()] == [
        "config.json"
    ]
    with pytest.raises(FileNotFoundError), writable(folder / "failed") as local:
        (local / "a").write_text((local / "b").read_text())
    assert not (folder / "failed").exists()


@pytest.mark.slow
def test_faults_that_pass_are_waited_for(server, folder, monkeypatch):
    left = [2]

    def fault(request):
        left[0] -= 1
        return down(server) if left[0] >= 0 else None

    with server.failing(fault):
        (folder / "a").write_bytes(b"1")
    left[0] = 1
    with server.failing(fault):
        assert (folder / "a").read_bytes() == b"1"
    cut = iter(["cut"])
    with server.failing(lambda request: next(cut, None)):
        (folder / "b").write_bytes(b"2" * 1000)
    assert (folder / "b").read_bytes() == b"2" * 1000


@pytest.mark.slow
def test_a_store_that_stays_away_is_one_line_and_is_no_missing_file(server, folder, monkeypatch):
    monkeypatch.setattr(calls, "PATIENCE", 0.5)
    with server.failing(lambda request: "cut"):
        # gcsfs by itself tries for half a minute
        for call in ((folder / "a").is_file, folder.objects)[: 1 if server.scheme == "gs" else 2]:
            with pytest.raises(StoreError, match="has not answered for") as error:
                call()
            assert "\n" not in str(error.value)


def test_an_address_where_nobody_listens_is_waited_for(server, folder, monkeypatch):
    if server.scheme == "gs":
        pytest.skip("gcsfs by itself tries for half a minute")
    monkeypatch.setattr(calls, "PATIENCE", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    files = paths.file_system("s3")
    monkeypatch.setattr(paths, "file_system", lambda scheme: type(files)(skip_instance_cache=True))
    with pytest.raises(StoreError, match=r"has not answered for .*Could not connect"):
        (folder / "a").write_bytes(b"1")


def test_what_the_store_refuses_is_told_at_once(server, folder):
    started = time.monotonic()
    with (
        server.failing(lambda request: full(server)),
        pytest.raises(StoreError, match=r"the store refuses \(.*[Qq]uota"),
    ):
        (folder / "a").write_bytes(b"1")
    with server.failing(lambda request: full(server)), pytest.raises(StoreError, match="the store refuses"):
        (folder / "a").is_file()
    assert time.monotonic() - started < 5


def test_a_bucket_that_does_not_exist_is_one_line(server):
    path = as_path(f"{server.scheme}://no-such-bucket/runs")
    for call in (lambda: check_reachable(path), lambda: (path / "a").write_bytes(b"1")):
        with pytest.raises(StoreError, match=f"there is no bucket {server.scheme}://no-such-bucket. Make it"):
            call()


def lines(*steps):
    return [{"step": step, "loss": step / 2} for step in steps]


def test_lines_are_parts_until_the_end_and_read_the_same(folder):
    path = folder / "metrics.jsonl"
    file = LineFile(path, 0)
    for line in lines(1, 2):
        file.write(line)
    assert read_lines(path) == []  # in memory only
    file.flush()
    file.write(lines(3)[0])
    file.flush()
    assert [name for name in folder.objects() if "parts" in name] == [
        "metrics.jsonl.parts/00000000", "metrics.jsonl.parts/00000002",
    ]  # fmt: skip
    assert read_lines(path) == lines(1, 2, 3)
    again = LineFile(path, 2)  # a resumed run drops what comes again
    assert read_lines(path) == lines(1, 2)
    again.write(lines(3)[0])
    again.close()
    assert read_lines(path) == lines(1, 2, 3)
    before = read_all(path)
    join_parts(path)
    assert list(folder.objects()) == ["metrics.jsonl"]
    assert read_all(path) == path.read_bytes() == before


def test_lines_survive_a_kill_between_joining_and_removing_the_parts(folder):
    path = folder / "metrics.jsonl"
    file = LineFile(path, 0)
    for line in lines(1, 2, 3):
        file.write(line)
        file.flush()
    parts = {name: (folder / name).read_bytes() for name in folder.objects() if "parts" in name}
    file.join()
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    assert read_lines(path) == lines(1, 2, 3)
    LineFile(path, 2).close()
    assert read_lines(path) == lines(1, 2)
