"""Model folders from strangers: nothing in them runs, nothing else is touched, and a refusal is cheap.

Every attack is read in a process of its own under an audit hook, which reports each file opened outside of the folder,
each command, each connection and each module looked up by a pickle, and measures CPU time and peak memory.
"""

from __future__ import annotations

import copyreg
import functools
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer
from distil_jax.hf.config import read_encoder_config
from distil_jax.hf.read import read_tensors

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEGABYTES = 1.0, 100.0  # what a refusal may cost at most
LONGEST_MESSAGE = 2000  # characters, the path included

WATCHER = r"""
import codecs, gc, json, os, sys, time, traceback
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer
from distil_jax.hf.config import read_encoder_config
from distil_jax.hf.params import read_params
from distil_jax.hf.read import read_tensors

READ = {"tensors": read_tensors, "params": read_params, "config": read_encoder_config, "tokenizer": load_tokenizer}
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
             "os.chmod", "os.link", "os.symlink", "os.truncate", "subprocess.Popen", "socket.", "pickle.find_class",
             "exec", "ctypes.dlopen", "shutil.", "webbrowser.open")
state = {"folder": None, "seen": []}

def watch(event, arguments):
    if state["folder"] is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        mode = arguments[1] or "r"
        if not path.startswith(state["folder"]) or any(letter in mode for letter in "wax+"):
            state["seen"].append(f"open {path} {mode}")
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
for name in ("cp437", "unicode_escape", "utf-8"):
    codecs.lookup(name)
gc.collect()
gc.freeze()  # so that collecting before each attack looks at little
sys.addaudithook(watch)
for line in sys.stdin:
    print(json.dumps(attack(*json.loads(line))), flush=True)
"""

Attack = Callable[[str, Path], dict[str, Any]]


def good_state() -> dict[str, torch.Tensor]:
    return {"word": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(4)}


CONFIG = {"model_type": "distilbert", "vocab_size": 9, "dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 6}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a"]


def write_good(folder: Path) -> list[tuple[str, str]]:
    """A well-formed example of every kind of file -> (kind, folder) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, str]] = []
    for name, data in good_files(folder).items():
        place = folder / name.replace("/", "_")
        place.mkdir(exist_ok=True)
        (place / name.rpartition("/")[2]).write_bytes(data)
        made.append((kind_of(name), str(place)))
    return made


def kind_of(name: str) -> str:
    last = name.rpartition("/")[2]
    return {"config.json": "config", "tokenizer.json": "tokenizer", "vocab.txt": "tokenizer"}.get(last, "tensors")


@functools.cache
def good_files(folder: Path) -> dict[str, bytes]:
    """variant/file name -> content."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(good_state(), folder / "zip.bin")
    torch.save(good_state(), folder / "legacy.bin", _use_new_zipfile_serialization=False)
    values = {name: tensor.numpy() for name, tensor in good_state().items()}
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


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A function (kind, folder) -> what reading the folder did, in a watched process that outlives one attack."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "good.json").write_text(json.dumps(write_good(folder / "good")))
    (folder / "watcher.py").write_text(WATCHER)
    # The library's own message of a panic in Rust belongs to its stderr, which nobody reads here.
    process = subprocess.Popen(
        [sys.executable, str(folder / "watcher.py"), str(folder / "good.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    send, receive = process.stdin, process.stdout

    def run(kind: str, place: Path) -> dict[str, Any]:
        send.write(json.dumps((kind, str(place))) + "\n")
        send.flush()
        line = receive.readline()
        assert line, f"the reader died over {sorted(place.iterdir())}"
        return json.loads(line)

    yield run
    send.close()
    process.kill()
    process.wait()
    receive.close()


def assert_harmless(result: dict[str, Any], *, refused: bool = True) -> None:
    assert result["outcome"] in (("refused",) if refused else ("refused", "read")), result
    assert result["seen"] == [], result
    assert result["message"].isprintable() and len(result["message"]) < LONGEST_MESSAGE, result["message"][:5000]
    assert result["seconds"] < SECONDS and result["megabytes"] < MEGABYTES, result


def place(folder: Path, name: str, data: bytes) -> Path:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / name).write_bytes(data)
    return folder / "m"


# Pickles


class Evil:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def short_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def payloads(flag: Path) -> dict[str, bytes]:
    """Pickles that make the file `flag` in ten and more different ways when Python loads them."""
    command, source = f"touch {flag}", f"open({str(flag)!r}, 'w').close()"
    system = b"cos\nsystem\n"
    text = short_text(command)
    return {
        "system, protocol 0": pickle.dumps(Evil(os.system, command), 0),
        "system, protocol 2": pickle.dumps(Evil(os.system, command), 2),
        "system, protocol 4": pickle.dumps(Evil(os.system, command), 4),
        "eval": pickle.dumps(Evil(eval, source), 2),
        "exec": pickle.dumps(Evil(exec, source), 2),
        "subprocess": pickle.dumps(Evil(subprocess.call, ["touch", str(flag)]), 2),
        "a method of pathlib": pickle.dumps(Evil(Path.touch, flag), 4),
        "partial, by BUILD": pickle.dumps(Evil(functools.partial(os.system, command)), 2),
        "INST": b"(S" + repr(command).encode() + b"\nios\nsystem\n.",
        "OBJ": b"(" + system + text + b"o.",
        "NEWOBJ of map": b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\n" + system + b"]" + text + b"a\x86\x81\x85\x81.",
        "EXT1": b"\x80\x02\x82\xf0(" + text + b"tR.",
        "hidden behind a state dict": b"\x80\x02}" + short_text("a") + system + b"(" + text + b"tR" + b"s.",
        "popped again": b"\x80\x02" + system + b"(" + text + b"tR0}.",
    }


PAYLOADS = [*payloads(Path("x"))]


@pytest.fixture
def extension() -> Iterator[None]:
    """os.system under the pickle extension code that one of the payloads uses."""
    copyreg.add_extension(os.system.__module__, "system", 0xF0)
    yield
    copyreg.remove_extension(os.system.__module__, "system", 0xF0)


def zipped(program: bytes, members: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in ({"data.pkl": program} | (members or {})).items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy(program: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps([], 2)


WRAPPERS = {"zip": zipped, "legacy": legacy, "bare": bytes}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.usefixtures("extension")
def test_payloads_are_working_attacks(tmp_path: Path, name: str) -> None:
    pickle.loads(payloads(tmp_path / "flag")[name])
    assert (tmp_path / "flag").exists()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_runs(tmp_path: Path, attack: Attack, name: str, wrapper: str) -> None:
    data = WRAPPERS[wrapper](payloads(tmp_path / "flag")[name])
    assert_harmless(attack("tensors", place(tmp_path, "pytorch_model.bin", data)))
    assert not (tmp_path / "flag").exists()


def doubled_tuples(levels: int) -> bytes:
    """A tuple of two tuples of two tuples ...: a hundred bytes that stand for 2^levels of them."""
    step = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))
    return b"\x80\x02)" + step


def many_members(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"a/{number}", b"")
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


def storage_program(count: int, key: str = "0") -> bytes:
    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if obj is marker else None

    marker, buffer = object(), io.BytesIO()

    class Tensor:
        def __reduce__(self) -> Any:
            from collections import OrderedDict

            rebuild: Any = getattr(torch, "_utils")._rebuild_tensor_v2  # noqa: B009
            return rebuild, (marker, 0, (count,), (1,), False, OrderedDict())

    Pickler(buffer, 2).dump({"a": Tensor()})
    return buffer.getvalue()


def claimed_size() -> bytes:
    """A stored member whose header claims a terabyte."""
    data = zipped(storage_program(4), {"data/0": bytes(16)})
    at = data.rindex(b"archive/data/0") - 46
    return data[: at + 20] + struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0) + data[at + 28 :]


PICKLE_BOMBS: dict[str, Callable[[], bytes]] = {
    "a million instructions": lambda: zipped(b"\x80\x02" + b"N" * 2_000_000 + b"."),
    "a program of 60 MB": lambda: zipped(b"\x80\x02" + b"N" * 60_000_000 + b"."),
    "a million dictionaries": lambda: legacy(b"\x80\x02" + b"}" * 2_000_000 + b"."),
    "a text of 60 MB": lambda: legacy(b"\x80\x02X" + struct.pack("<I", 60_000_000) + bytes(60_000_000) + b"."),
    "a claimed text": lambda: legacy(b"\x80\x02\x8d" + struct.pack("<Q", 1 << 60) + b"."),
    "doubled tuples as state": lambda: zipped(doubled_tuples(60) + b"."),
    "doubled tuples as storage keys": lambda: (
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        + b"\x80\x02}."
        + doubled_tuples(60).replace(b"\x80\x02", b"\x80\x02](", 1)
        + b"e."
    ),
    "deep tuples": lambda: zipped(b"\x80\x02)" + b"\x85" * 300_000 + b"."),
    "a number of a million digits": lambda: zipped(b"I" + b"9" * 1_000_000 + b"\n."),
    "a storage name with ../": lambda: zipped(storage_program(4, "../../../x"), {"data/0": bytes(16)}),
    "a storage of a terabyte": lambda: zipped(storage_program(1 << 38), {"data/0": bytes(16)}),
    "a member that claims 4 GB": claimed_size,
    "60,000 members": lambda: many_members(60_000),
    "no members": lambda: zipped(b"."),
    "a name of a megabyte": lambda: zipped(b"\x80\x02}" + short_text("x" * 1_000_000) + b"Ns."),
    "a name that breaks the line": lambda: zipped(b"\x80\x02}" + short_text("a\n\x1b[2Jb") + b"Ns."),
    "a reference that breaks the line": lambda: zipped(
        b"\x80\x04" + short_text("a\nb") + short_text("c\nd") + b"\x93."
    ),
}


@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_pickle_bombs(tmp_path: Path, attack: Attack, name: str) -> None:
    assert_harmless(attack("tensors", place(tmp_path, "pytorch_model.bin", PICKLE_BOMBS[name]())))


# safetensors and MessagePack


def st_file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int = 0, end: int = 16, shape: tuple[int, ...] = (4,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def many_tensors(count: int) -> bytes:
    form = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    entries = ",".join(form % (i, 4 * i, 4 * i + 4) for i in range(count))
    return st_file(f"{{{entries}}}".encode(), bytes(4 * count))


SAFETENSORS_BOMBS: dict[str, Callable[[], bytes]] = {
    "a header of 2^63 bytes": lambda: st_file({"a": entry()}, length=1 << 63),
    "a header of 90 MB, there": lambda: st_file(b"{" + b" " * 90_000_000 + b"}"),
    "a header of 4 MB of lists": lambda: st_file(b'{"a":' + b"[" + b"[]," * 1_300_000 + b"[]]}"),
    "deep lists": lambda: st_file(b'{"a":' + b"[" * 1_000_000),
    "400,000 tensors": lambda: many_tensors(400_000),
    "20,000 tensors": lambda: many_tensors(20_000),
    "overlap": lambda: st_file({"a": entry(), "b": entry(0, 8, (2,))}),
    "offsets beyond the file": lambda: st_file({"a": entry(0, 1 << 40, (1 << 38,))}),
    "offsets backwards": lambda: st_file({"a": entry(16, 0)}),
    "a shape that overflows": lambda: st_file({"a": entry(0, 16, (1 << 62, 1 << 62, 4))}),
    "a shape of a million ones": lambda: st_file({"a": entry(0, 4, (1,) * 1_000_000)}, bytes(4)),
    "the same name twice": lambda: st_file(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2)),
    "a name with ../": lambda: st_file({"../../etc/passwd": entry()}),
    "a name from the root": lambda: st_file({"/etc/passwd": entry()}),
    "a name with a backslash": lambda: st_file({"..\\x": entry()}),
    "a name of a megabyte": lambda: st_file({"x" * 1_000_000: entry()}),
    "a name that breaks the line": lambda: st_file({"a\n\x1b[2Jb": entry()}),
    "an empty name": lambda: st_file({"": entry()}),
    "a framework that breaks the line": lambda: st_file({"__metadata__": {"format": "a\nb" * 9999}, "a": entry()}),
}


@pytest.mark.parametrize("name", SAFETENSORS_BOMBS)
def test_safetensors_bombs(tmp_path: Path, attack: Attack, name: str) -> None:
    assert_harmless(attack("tensors", place(tmp_path, "model.safetensors", SAFETENSORS_BOMBS[name]())))


def packed(value: Any) -> bytes:
    data = msgpack.packb(value)
    assert data is not None
    return data


def ext(shape: Any, dtype: str, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, packed((shape, dtype, data)))


MSGPACK_BOMBS: dict[str, Callable[[], bytes]] = {
    "a list of four billion": lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 30_000_000,
    "a map of four billion": lambda: b"\xdf\xff\xff\xff\xff" + b"\xa1a\xc0" * 1000,
    "two million empty maps": lambda: (
        b"\xdf\x00\x20\x00\x00" + b"".join(packed(f"{i}") + b"\x80" for i in range(400_000))
    ),
    "nested lists": lambda: b"\x81\xa1a" + b"\xdd\x00\xff\xff\xff" * 500_000,
    "nested maps": lambda: b"\x81\xa1a" * 1_000_000,
    "nested extensions": lambda: b"\x81\xa1a" + b"\xc9\x7f\xff\xff\xff\x01" * 100_000,
    "a name of a megabyte": lambda: packed({"x" * 1_000_000: {}}),
    "a name with ../": lambda: packed({"../x": ext((1,), "float32", bytes(4))}),
    "a name that breaks the line": lambda: packed({"a\nb": ext((1,), "float32", bytes(4))}),
    "the same name twice": lambda: b"\x82" + (packed("a") + packed(ext((1,), "float32", bytes(4)))) * 2,
    "bytes behind the end": lambda: packed({"a": ext((1,), "float32", bytes(4))}) + b"\xc0",
    "a dtype that is a program": lambda: packed({"a": ext((1,), "O", bytes(8))}),
}


@pytest.mark.parametrize("name", MSGPACK_BOMBS)
def test_msgpack_bombs(tmp_path: Path, attack: Attack, name: str) -> None:
    assert_harmless(attack("tensors", place(tmp_path, "flax_model.msgpack", MSGPACK_BOMBS[name]())))


# Folders


SHARDS = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/../../x.safetensors",
    "..\\x.safetensors",
    "x.py",
    "x\0.safetensors",
]


@pytest.mark.parametrize("shard", SHARDS)
def test_shards_outside_of_the_folder(tmp_path: Path, attack: Attack, shard: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(st_file({"a": entry()}))
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    assert_harmless(attack("tensors", place(tmp_path, "model.safetensors.index.json", index)))


INDEX_BOMBS = {
    "a million tensors": lambda: json.dumps(
        {"weight_map": {f"t{i}": "a.safetensors" for i in range(300_000)}}
    ).encode(),
    "lists": lambda: b'{"weight_map": [' + b"[]," * 600_000 + b"[]]}",
    "16,000 shards": lambda: json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(16_000)}}).encode(),
    "a name with ../": lambda: json.dumps({"weight_map": {"../a": "a.safetensors"}}).encode(),
    "deep": lambda: b"[" * 1_000_000,
}


@pytest.mark.parametrize("name", INDEX_BOMBS)
def test_index_bombs(tmp_path: Path, attack: Attack, name: str) -> None:
    assert_harmless(attack("tensors", place(tmp_path, "model.safetensors.index.json", INDEX_BOMBS[name]())))


def test_code_in_the_folder_is_never_run(tmp_path: Path, attack: Attack) -> None:
    """A folder that asks for remote code in all ways that transformers knows, with modules that would leave a trace."""
    flag = tmp_path / "flag"
    folder = tmp_path / "m"
    folder.mkdir()
    evil = f"open({str(flag)!r}, 'w')\nclass Evil: pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(evil)
    remote = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModel": "modeling_evil.Evil",
        "AutoTokenizer": ["x.Evil"] * 2,
    }
    asks = {"auto_map": remote, "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "modeling_evil.Evil"}}}
    (folder / "config.json").write_text(json.dumps(CONFIG | asks))
    (folder / "tokenizer_config.json").write_text(json.dumps(asks | {"tokenizer_class": "Evil"}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "model.safetensors").write_bytes(st_file({"a": entry()}))
    for kind, outcome in (("config", "read"), ("tokenizer", "read"), ("tensors", "read"), ("params", "refused")):
        result = attack(kind, folder)
        assert result["outcome"] == outcome
        assert_harmless(result, refused=False)
    assert not flag.exists()
    assert not [name for name in os.listdir(folder) if name.startswith("__pycache__")]


HUGE = {"vocab_size": 1 << 22, "dim": 1 << 16, "n_layers": 1 << 10, "n_heads": 1 << 10, "hidden_dim": 1 << 18}


@pytest.mark.parametrize("name", [*HUGE, "all"])
@pytest.mark.parametrize("size", ["largest", "beyond"])
def test_huge_dimensions_are_not_allocated(tmp_path: Path, attack: Attack, name: str, size: str) -> None:
    changes = HUGE if name == "all" else {name: HUGE[name]}
    changes = changes if size == "largest" else dict.fromkeys(changes, 10**15)
    folder = place(tmp_path, "config.json", json.dumps(CONFIG | {"dim": 1 << 10} | changes).encode())
    (folder / "model.safetensors").write_bytes(st_file({"embeddings.word_embeddings.weight": entry()}))
    assert_harmless(attack("params", folder))


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a slow pattern": lambda raw: raw.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    ),
    "text that grows": lambda raw: raw.update(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}
    ),
    "a pattern to split by": lambda raw: raw.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ),
    "a table that panics": lambda raw: raw.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "deep sequences": lambda raw: raw.update(
        normalizer=functools.reduce(lambda x, _: {"type": "Sequence", "normalizers": [x]}, range(100), {})
    ),
    "endless words": lambda raw: raw["model"].update(max_input_chars_per_word=1 << 40),
    "another model": lambda raw: raw["model"].update(type="Unigram"),
    "ids beyond all": lambda raw: raw["model"]["vocab"].update(z=1 << 31),
    "negative ids": lambda raw: raw["model"]["vocab"].update(z=-1),
    "an added token of a megabyte": lambda raw: raw["added_tokens"].append({"id": 9, "content": "x" * 1_000_000}),
    "an added token without id": lambda raw: raw["added_tokens"].append({"content": "x"}),
    "an unknown token that is none": lambda raw: raw["model"].update(unk_token="nope"),
    "a hundred thousand objects": lambda raw: raw.update(added_tokens=[{}] * 100_000),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_tokenizers(tmp_path: Path, attack: Attack, name: str) -> None:
    raw = json.loads(good_files(tmp_path / "good")["json/tokenizer.json"])
    TOKENIZERS[name](raw)
    assert_harmless(attack("tokenizer", place(tmp_path, "tokenizer.json", json.dumps(raw).encode())))


def test_templates_that_panic_are_replaced(tmp_path: Path, attack: Attack) -> None:
    raw = json.loads(good_files(tmp_path / "good")["json/tokenizer.json"])
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    raw["padding"] = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_id": 0, "pad_token": "[PAD]"}
    folder = place(tmp_path, "tokenizer.json", json.dumps(raw).encode())
    assert_harmless(attack("tokenizer", folder), refused=False)
    assert load_tokenizer(folder).backend.encode("a b").ids == [2, 5, 6, 3]


VOCABULARIES = {
    "empty": b"",
    "a token of a megabyte": b"x" * 1_000_000,
    "two million tokens": b"\n".join(b"%d" % i for i in range(2_000_000)),
    "not UTF-8": b"[PAD]\n\xff\xfe\n",
    "one token": b"[PAD]",
    "the same token": b"a\n" * 500_000,
    "a special token twice": "\n".join([*VOCABULARY, "[PAD]"]).encode(),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_hostile_vocabularies(tmp_path: Path, attack: Attack, name: str) -> None:
    assert_harmless(attack("tokenizer", place(tmp_path, "vocab.txt", VOCABULARIES[name])))


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb", "x" * 5000, "y" * 300, "~nobody-of-this-name/x", "../nothing", "", "a/b/c"]
)
def test_names_of_folders(name: str) -> None:
    for read in (read_encoder_config, load_tokenizer):
        with pytest.raises(UserError) as caught:
            read(name)
        assert str(caught.value).isprintable()


# Mutations

WORDS = [
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


def mutate(data: bytes, chance: random.Random) -> bytes:
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
            bad[at : at + chance.choice((0, size))] = chance.choice(WORDS)
        else:
            other = chance.randrange(len(bad))
            bad[at : at + size] = bad[other : other + size]
    return bytes(bad[: chance.randrange(len(bad) + 1)] if chance.random() < 0.1 else bad)


def fuzz(attack: Attack, folder: Path, seeds: dict[str, bytes], tries: int) -> str:
    """Reads `tries` mutations of the seeds; fails where one is not harmless -> a row of the table of faults."""
    chance, began, refused = random.Random(5), time.monotonic(), 0
    names = sorted(seeds)
    (folder / "m").mkdir()
    for number in range(tries):
        name = names[number % len(names)]
        path = folder / "m" / name.rpartition("/")[2]
        path.write_bytes(mutate(seeds[name], chance))
        result = attack(kind_of(name), folder / "m")
        try:
            assert_harmless(result, refused=False)
        except AssertionError as error:
            raise AssertionError(f"{name}: {path.read_bytes()[:4000]!r}") from error
        refused += result["outcome"] == "refused"
        path.unlink()
    assert refused > tries / 4, "most mutations should not have been noticed: are these the right seeds?"
    return f"{tries} | {tries} | {time.monotonic() - began:.0f} |"


def pickle_seeds(folder: Path) -> dict[str, bytes]:
    seeds = {name: data for name, data in good_files(folder / "good").items() if name.endswith(".bin")}
    for name, program in payloads(folder / "flag").items():
        for wrapper, wrap in WRAPPERS.items():
            seeds[f"{wrapper} {name}/pytorch_model.bin"] = wrap(program)
    return seeds


def test_mutations_of_pickles(tmp_path: Path, attack: Attack) -> None:
    fuzz(attack, tmp_path, pickle_seeds(tmp_path), 300)
    assert not (tmp_path / "flag").exists()


def test_mutations_of_other_files(tmp_path: Path, attack: Attack) -> None:
    good = good_files(tmp_path / "good")
    fuzz(attack, tmp_path, {name: data for name, data in good.items() if not name.endswith(".bin")}, 200)


@pytest.mark.slow
def test_three_thousand_mutations_of_pickles(tmp_path: Path, attack: Attack, capsys: pytest.CaptureFixture) -> None:
    row = fuzz(attack, tmp_path, pickle_seeds(tmp_path), 3000)
    assert not (tmp_path / "flag").exists()
    with capsys.disabled():
        sys.stdout.write(f"\n| hostile pickles, {len(PAYLOADS)} payloads and mutations | {row}\n")


@pytest.mark.slow
def test_three_thousand_mutations_of_other_files(tmp_path: Path, attack: Attack, capsys: pytest.CaptureFixture) -> None:
    good = good_files(tmp_path / "good")
    row = fuzz(attack, tmp_path, {name: data for name, data in good.items() if not name.endswith(".bin")}, 3000)
    with capsys.disabled():
        sys.stdout.write(f"\n| hostile safetensors, MessagePack, JSON and vocabularies, mutated | {row}\n")


def read_or_refuse(folder: Path) -> None:
    try:
        for values in read_tensors(folder).values():
            assert values.size < 1 << 20
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < LONGEST_MESSAGE


OPCODES = [bytes([code]) for code in b"NRtq(}]lsuabe)\x85\x86\x87\x88\x89\x94h0QP2c\x93\x81"]
PARTS = st.one_of(
    st.sampled_from(OPCODES),
    st.integers(0, 300).map(lambda n: b"J" + struct.pack("<i", n - 100)),
    st.sampled_from(["storage", "0", "cpu", "a", "torch", "FloatStorage", "collections"]).map(short_text),
    st.sampled_from(
        [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]
    ),
    st.integers(0, 3).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"h" + bytes([n])),
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.lists(PARTS, max_size=40))
def test_any_program_is_read_or_refused(tmp_path: Path, parts: list[bytes]) -> None:
    program = b"\x80\x02" + b"".join(parts) + b"."
    for wrap in (zipped, legacy):
        read_or_refuse(place(tmp_path, "pytorch_model.bin", wrap(program)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", ""]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 65) | st.integers(0, 4), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 32) | st.integers(-(1 << 65), 1 << 65), max_size=3) | JSON,
    }
)


@quick
@given(st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), ENTRIES | JSON, max_size=4), st.integers(0, 40))
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    read_or_refuse(place(tmp_path, "model.safetensors", st_file(header, bytes(size))))


TREES = st.recursive(
    st.builds(
        ext, st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["float32", "int8", "object", "x"]), st.binary()
    )
    | st.none()
    | st.integers(0, 1 << 40)
    | st.binary(max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=5) | st.just("__msgpack_chunked_array__"), inner, max_size=4),
    max_leaves=8,
)


@quick
@given(TREES)
def test_any_tree_is_read_or_refused(tmp_path: Path, tree: Any) -> None:
    read_or_refuse(place(tmp_path, "flax_model.msgpack", packed(tree)))


def test_a_checksum_is_looked_at_when_values_are_read(tmp_path: Path) -> None:
    data = zipped(storage_program(4), {"data/0": np.arange(4, dtype="<f4").tobytes()})
    folder = place(tmp_path, "pytorch_model.bin", data)
    np.testing.assert_array_equal(read_tensors(folder)["a"], np.arange(4))
    flipped = bytearray(data)
    flipped[data.index(np.float32(3).tobytes())] ^= 1
    with pytest.raises(UserError, match=r"data/0: damaged .*CRC-32"):
        read_tensors(place(tmp_path, "pytorch_model.bin", bytes(flipped)))
