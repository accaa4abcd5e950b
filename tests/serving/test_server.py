"""The command in a process of its own: it answers, and on SIGTERM ends once all it has accepted is answered."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distil_jax import cli
from distil_jax.export import load_predictor, predict

pytest.importorskip("uvicorn", reason='pip install "distil_jax[serve]"')
pytest.importorskip("starlette", reason='pip install "distil_jax[serve]"')
TEXTS = ["the cat sat", "a dog ran fast", "red fish", "the moon"] * 16


def post(port: int, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_it_answers_all_it_has_accepted(
    task_folder: Callable[..., Path], command_environment: Mapping[str, str]
) -> None:
    folder = task_folder("classes")
    command = [sys.executable, "-m", "distil_jax.cli", "serve", str(folder), "--port", "0", "--max-length", "16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **command_environment})
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        match = re.search(r"http://127.0.0.1:(\d+)/predict", line)
        assert match, line + process.stderr.read()
        port, answers = int(match[1]), []
        expected = [*predict(load_predictor(folder, max_length=16), TEXTS)]
        status, found = post(port, {"inputs": TEXTS})
        assert status == 200
        assert [one["label"] for one in found["predictions"]] == [one["label"] for one in expected]
        threads = [threading.Thread(target=lambda: answers.append(post(port, {"inputs": TEXTS}))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(400):  # until one of them is answered, so that all are accepted
            threads[0].join(0.01)
            if answers:
                break
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
        assert "answered" in process.stderr.read()
        assert [status for status, _ in answers] == [200] * 8
    finally:
        process.kill()
        process.wait()


def test_mistakes_are_one_line(
    task_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(task_folder("classes"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", folder, "--port", port]) == 2
        assert port in capsys.readouterr().err
    assert cli.main(["serve", folder, "--host", "256.1.1.1"]) == 2
    assert "256.1.1.1" in capsys.readouterr().err
    assert cli.main(["serve", f"{folder}/none", "--port", "0"]) == 2
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", folder]) == 2
    assert "distil_jax[serve]" in capsys.readouterr().err
