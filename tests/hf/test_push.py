"""Uploads to a hub that speaks the protocol on this host."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from distil_jax.cli import main
from distil_jax.export import export

TOKEN = "hf_" + "a" * 34
REPOSITORY = "me/small"


class _Hub(http.server.ThreadingHTTPServer):
    """Creation of repositories, commits, and uploads of large files by their hash; `fail_puts` uploads fail first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.fail_puts = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self._answer(200, {"url": f"{hub.address}/{REPOSITORY}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] > 500 else "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files, "commitOid": "0" * 40})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": one["oid"], "size": one["size"]}
                | (
                    {}
                    if one["oid"] in hub.objects
                    else {"actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                )
                for one in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            hub.commits.append(lines[0]["value"])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            return self._answer(
                200, {"commitUrl": f"{hub.address}/{REPOSITORY}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
            )
        return self._answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        data, oid = self._body(), self.path.rpartition("/")[2]
        if self.server.fail_puts:
            self.server.fail_puts -= 1
            return self._answer(400, {"error": "lost"})
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.puts.append(oid)
        self.server.objects[oid] = data
        return self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {"error": self.path})

    def log_message(self, *_args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[_Hub]:
    server = _Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# small\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "more.safetensors").write_bytes(bytes(range(255)) * 10)
    return folder


Push = Callable[..., tuple[int, str, str]]


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    """(hub or address, folder, *arguments, token=) -> status, output and errors of the command."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def run(hub: _Hub | str, folder: Path, *arguments: str, token: str = TOKEN) -> tuple[int, str, str]:
        monkeypatch.setattr(constants, "ENDPOINT", hub if isinstance(hub, str) else hub.address)
        monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        status = main(["push", str(folder), REPOSITORY, *arguments])
        shown = capsys.readouterr()
        return status, shown.out.strip(), shown.err.strip()

    return run


def test_every_file_arrives_in_one_commit(hub: _Hub, folder: Path, push: Push) -> None:
    status, shown, errors = push(hub, folder, "--private", "--message", "A small student")
    assert status == 0, errors
    assert shown.splitlines()[-1] == f"{hub.address}/{REPOSITORY}"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [commit["summary"] for commit in hub.commits] == ["A small student"]
    (created,) = hub.created
    assert created["name"] == "small" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"


def test_an_interrupted_upload_sends_only_what_is_missing(hub: _Hub, folder: Path, push: Push) -> None:
    hub.fail_puts = 1
    status, _, errors = push(hub, folder)
    assert status == 1 and "continues" in errors.splitlines()[-1]
    assert hub.commits == []
    before = len(hub.puts)
    assert push(hub, folder)[0] == 0
    assert len(hub.puts) == 2 and len({*hub.puts}) == 2, f"{before} of 2 were sent by the first command"
    assert hub.files.keys() == {path.name for path in folder.iterdir()}


def test_a_wrong_token_is_one_line(hub: _Hub, folder: Path, push: Push) -> None:
    status, _, errors = push(hub, folder, token="hf_wrong")
    assert status == 2 and hub.commits == []
    (line,) = errors.splitlines()
    assert "401" in line and "HF_TOKEN" in line and REPOSITORY in line


def test_a_hub_that_is_not_there_is_one_line(folder: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, errors = push("http://127.0.0.1:9", folder)
    assert status == 1 and REPOSITORY in errors.splitlines()[-1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, errors = push("http://127.0.0.1:9", folder)
    assert status == 2 and len(errors.splitlines()) == 1 and "HF_HUB_OFFLINE" in errors


def test_mistakes_are_found_before_anything_is_sent(hub: _Hub, folder: Path, tmp_path: Path, push: Push) -> None:
    (tmp_path / "empty").mkdir()
    status, _, errors = push(hub, tmp_path / "empty")
    assert status == 2 and str(tmp_path / "empty") in errors
    status, _, errors = push(hub, folder, "--step", "3")
    assert status == 2 and "--step 3" in errors
    assert hub.created == []


def test_a_run_is_exported_first(hub: _Hub, tiny_run: Path, tmp_path: Path, push: Push) -> None:
    status, _, errors = push(hub, tiny_run, "--step", "1")
    assert status == 0, errors
    export(tiny_run, tmp_path / "small", step=1)
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}


@pytest.mark.parametrize("name", ["small", "me/a b", "me/-small", "me/small.git", "a/b/c", "me/" + "x" * 200])
def test_a_name_that_cannot_be_is_refused_before_anything_is_exported(
    name: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_jax.export.upload.export", lambda *_, **__: pytest.fail("exported"))
    monkeypatch.setattr("distil_jax.cli.models.start", lambda _: None)
    assert main(["push", str(tiny_run), name]) == 2
    assert "not the name of a repository; give user/name" in capsys.readouterr().err
