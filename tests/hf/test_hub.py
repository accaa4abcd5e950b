"""Folders are themselves; hub ids come from the hub or its cache; everything else is said at once."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer, locate, read_encoder_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.ThreadingHTTPServer):
    """The two requests of the hub's protocol that a download makes: HEAD and GET of /<id>/resolve/<commit>/<file>."""

    def __init__(self, repo: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.folder = repo, folder
        self.fetched: list[str] = []
        self.asked: list[tuple[str, str]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def _answer(self, body: bool) -> None:
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        path = self.server.folder / name
        self.server.asked.append((name, revision))
        if repo != self.server.repo or revision not in ("main", COMMIT) or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if repo == self.server.repo else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.server.fetched.append(name)
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_args: object) -> None:
        return


@pytest.fixture
def serve() -> Iterator:
    servers: list[_Hub] = []

    def start(repo: str, folder: Path) -> _Hub:
        server = _Hub(repo, folder)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _run(code: str, cache: Path, endpoint: str, offline: bool) -> str:
    """Standard output of Python code in a process of its own: the hub's library reads its settings on import."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1" if offline else "0"}
    environment["HF_HUB_DISABLE_TELEMETRY"] = environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    prelude = "from distil_jax.errors import UserError; from distil_jax.hf import *\n"
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
try:
    config, params, *_ = read_pretrained(locate("tiny/model"))
    print(config.family, config.vocab_size, sorted(params))
except UserError as error:
    print("UserError", error)
"""


def test_the_folder_of_a_run_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match=f"is the folder of a run.*: distil-jax export {tmp_path} --output FOLDER"):
        locate(tmp_path)
    with pytest.raises(UserError, match="is the folder of a run"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert locate(tmp_path) == tmp_path


def test_the_folder_of_a_study_says_where_its_model_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"holds the runs of a study; give its model, {tmp_path / 'model'}"):
        locate(tmp_path)
    (tmp_path / "vocab.txt").write_text("")  # a tokenizer beside a model
    assert locate(tmp_path, files="tokenizer") == tmp_path


def test_from_the_hub_then_from_its_cache(
    make_folder: Callable[..., Path], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    folder = make_folder("DistilBertForMaskedLM")
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    (folder / "onnx").mkdir()
    hub = serve("tiny/model", folder)
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    expected = "distilbert 50 ['encoder', 'mlm_head']\n"
    assert _run(READ, tmp_path / "cache", endpoint, offline=False) == expected
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    # An upload between two files must not mix two versions: all but the first are asked for at the first one's commit.
    assert {revision for name, revision in hub.asked if name != "config.json"} == {COMMIT}
    hub.shutdown()
    hub.server_close()
    assert _run(READ, tmp_path / "cache", endpoint, offline=False) == expected  # nothing listens any more
    assert _run(READ, tmp_path / "cache", endpoint, offline=True) == expected


def test_sharded_from_the_hub(make_model: Callable[..., Any], tmp_path: Path, serve: Callable[..., Any]) -> None:
    make_model("BertModel").save_pretrained(tmp_path / "m", max_shard_size="3KB")
    shards = {path.name for path in (tmp_path / "m").glob("*-of-*")}
    assert len(shards) > 1
    hub = serve("tiny/model", tmp_path / "m")
    out = _run(READ, tmp_path / "cache", f"http://127.0.0.1:{hub.server_port}", offline=False)
    assert out == "bert 50 ['encoder']\n"
    assert set(hub.fetched) == shards | {"config.json", "model.safetensors.index.json"}


def test_tokenizer_from_the_hub(minilm: Path, tmp_path: Path, serve: Callable[..., Any]) -> None:
    hub = serve("tiny/model", minilm)
    code = 'print(load_tokenizer("tiny/model").sha256)'
    out = _run(code, tmp_path / "cache", f"http://127.0.0.1:{hub.server_port}", offline=False)
    assert out.strip() == load_tokenizer(minilm).sha256
    assert set(hub.fetched) == {*("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")}


@pytest.mark.parametrize("reader", ["export import read_ready", "evaluation.heldout import load_language_model"])
def test_a_model_is_used_with_its_tokenizer_from_the_hub(
    model_folder: Callable[..., str],
    task_folder: Callable[..., Path],
    tmp_path: Path,
    serve: Callable[..., Any],
    reader: str,
) -> None:
    folder = Path(model_folder()) if "heldout" in reader else task_folder("classes")
    hub = serve("tiny/model", folder)
    code = f"from distil_jax.{reader} as read\nprint(read('tiny/model').tokenizer.sha256)"
    for offline in (False, True):
        out = _run(code, tmp_path / "cache", f"http://127.0.0.1:{hub.server_port}", offline)
        assert out.strip() == load_tokenizer(folder).sha256


def test_what_the_hub_does_not_have(tmp_path: Path, serve: Callable[..., Any]) -> None:
    (tmp_path / "m").mkdir()
    hub = serve("tiny/other", tmp_path / "m")
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    out = _run(READ, tmp_path / "cache", endpoint, offline=False)
    assert out.startswith("UserError tiny/model: no such folder")
    hub.repo = "tiny/model"
    assert "has no config.json" in _run(READ, tmp_path / "cache", endpoint, offline=False)
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "none of the weight files model.safetensors" in _run(READ, tmp_path / "cache", endpoint, offline=False)


@pytest.mark.parametrize("offline", [True, False])
def test_offline_and_not_cached(tmp_path: Path, offline: bool) -> None:
    out = _run(READ, tmp_path / "cache", "http://127.0.0.1:9", offline=offline)
    assert out.startswith("UserError tiny/model: no such folder and not in the hub cache")
    assert out.count("\n") == 1


def test_folders_are_themselves(tmp_path: Path) -> None:
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./relative", "a/b/c", "../up", "~/nothing-here", "a b", "x/../y"])
def test_what_is_no_hub_id_is_not_asked_for(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_encoder_config(name)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(UserError, match="empty name"):
        locate("")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        locate(tmp_path / "model.safetensors")
