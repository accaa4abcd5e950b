"""A local model folder, or a hub id's files in the local cache."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from distil_jax.errors import UserError, first_line, one_line
from distil_jax.hf.fields import read_json
from distil_jax.hf.lazy_tensor import check_names
from distil_jax.hf.sentence_files import SENTENCE_FILES
from distil_jax.hf.tokenizer_files import SETTINGS, VOCABULARIES

Files = Literal["model", "tokenizer", "config", "sentence"]

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
)
_LONGEST_PATH = 4096  # as Linux has it
_LARGEST_INDEX = 2 << 20  # bytes of an index file; about 100 a tensor
_MOST_SHARDS = 1000
_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}", re.ASCII)
_PROBE_SECONDS = 1.0  # a hub that does not answer the connection by then counts as offline


def locate(path_or_id: str | Path, *, files: Files = "model") -> Path:
    """The folder that holds a model's files.

    An existing local folder is returned as it is. Anything else that looks like a hub id ("name", "organisation/name")
    is fetched into the hub cache, only the files asked for; `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_HOME` are
    honoured, and without a connection what the cache holds is used.

    Args:
        path_or_id: folder or hub id.
        files: "config" (config.json), "tokenizer" (vocabulary and its settings), "model" (config.json and weights),
            "sentence" (config.json and the files of sentence-transformers).

    Raises:
        UserError: no such folder, and not in the hub or its cache; a run that is not exported.
    """
    if not str(path_or_id).strip():
        raise UserError("an empty name of a model folder; give a path or a hub id")  # Path("") would be where we stand
    if any(char < " " for char in str(path_or_id)) or len(str(path_or_id)) > _LONGEST_PATH:
        raise UserError(f"{one_line(path_or_id, 60)}: not the name of a folder or of a hub repository")
    folder, kind = home_resolved(path_or_id), ""
    with contextlib.suppress(OSError):  # a part of the path that is too long for any file
        kind = "folder" if folder.is_dir() else "file" if folder.is_file() else ""
    if kind == "folder":
        _check_exported(folder)
        return folder
    if kind == "file":
        raise UserError(f"{folder}: is a file, expected the folder of a model")
    name = str(path_or_id)
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise UserError(f"{name}: no such folder (and not a hub id of the form organisation/name)")
    return _fetch(name, files)


def is_in_hub_cache(name: str) -> bool:
    """Whether `name` is a hub id whose config.json was fetched from the hub, and no folder of this machine."""
    from huggingface_hub import try_to_load_from_cache

    if not _HUB_ID.fullmatch(name) or ".." in name or home_resolved(name).exists():
        return False
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _check_exported(folder: Path) -> None:
    """Raises UserError for the folder of a run or of a task of a study, which say where the model is."""
    if any((folder / name).is_file() for name in ("config.json", *VOCABULARIES)):
        return
    if (folder / "config.toml").is_file():
        raise UserError(
            f"{folder}: is the folder of a run, expected that of a model; export it first: "
            f"distil-jax export {folder} --output FOLDER"
        )
    if (folder / "model" / "config.json").is_file():
        raise UserError(f"{folder}: holds the runs of a study; give its model, {folder / 'model'}")


def home_resolved(path: str | Path) -> Path:
    """The path with a leading ~ replaced; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _fetch(repo: str, files: Files) -> Path:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT)
    hub = _Hub(repo, offline)
    if files == "tokenizer":
        vocabulary = next((name for name in VOCABULARIES if hub.get(name) is not None), "")
        if not vocabulary:
            hub.need(VOCABULARIES[-1])
        if vocabulary == "vocab.json":
            hub.need("merges.txt")
        for name in ("config.json", *SETTINGS):
            hub.get(name)
    else:
        hub.need("config.json")
    if files == "model":
        hub.weights()
    elif files == "sentence":
        for name in SENTENCE_FILES if hub.get(SENTENCE_FILES[0]) else ():
            hub.get(name)
    assert hub.folder is not None  # need() has found a file or raised
    return hub.folder


class _Hub:
    """Files of one repository at one commit, one at a time into the cache."""

    def __init__(self, repo: str, offline: bool) -> None:
        self.repo, self.offline = repo, offline
        self.folder: Path | None = None
        self.commit: str | None = None

    def get(self, name: str) -> Path | None:
        """The local path of a file, None if the repository (offline: the cache) has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(self.repo, name, revision=self.commit, local_files_only=self.offline)
        except LocalEntryNotFoundError as error:
            if self.offline:
                return None
            raise UserError(f"{self.repo}: no such folder, not in the cache, and the hub does not answer") from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # refused, gone, unreadable: which HTTP library raises depends on the hub's version
            raise UserError(f"{self.repo}: no such folder, and the hub refused {name}: {first_line(error)}") from error
        # Later files are asked for at the first one's commit, so that an upload in between cannot mix two versions.
        if self.folder is None:  # the first file is none of a folder below
            self.folder = Path(path).parent
            self.commit = self.folder.name
        return Path(path)

    def need(self, name: str) -> Path:
        """Like get(), but a file that is not there is the user's mistake."""
        path = self.get(name)
        if path is not None:
            return path
        if self.offline:
            raise UserError(
                f"{self.repo}: no such folder and not in the hub cache ({name} is missing; the hub is "
                "offline or HF_HUB_OFFLINE is set)"
            )
        raise UserError(f"{self.repo}: no such folder, and the hub's repository of that name has no {name}")

    def weights(self) -> None:
        """The first weight file there is, and its shards."""
        for name in WEIGHT_FILES:
            path = self.get(name)
            if path is None:
                continue
            for shard in sorted({*shard_names(path).values()}) if name.endswith(".index.json") else ():
                self.need(shard)
            return
        raise UserError(f"{self.repo}: none of the weight files {', '.join(WEIGHT_FILES)} found")


def shard_names(index: Path) -> dict[str, str]:
    """The shard file of every tensor of an index, by its name; each a plain file name inside the folder."""
    weight_map = read_json(index, _LARGEST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map from tensor names to shard files")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    for shard in weight_map.values():
        # A name with a folder in it could point at any file of the machine.
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or not shard.endswith(suffix):
            raise UserError(f"{index}: shard {one_line(shard, 60)!r} is not the name of a {suffix} file in this folder")
    check_names(weight_map, index)
    if len(set(weight_map.values())) > _MOST_SHARDS:
        raise UserError(f"{index}: names {len(set(weight_map.values()))} shards, at most {_MOST_SHARDS} are taken")
    return weight_map


def _reachable(endpoint: str) -> bool:
    """Whether anything listens at the endpoint: the hub client itself would retry for many seconds."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    if url.scheme in getproxies() and not proxy_bypass(host):
        return True  # the proxy resolves and connects, so a direct probe says nothing
    try:
        with socket.create_connection((host, url.port or (443 if url.scheme == "https" else 80)), _PROBE_SECONDS):
            return True
    except OSError:
        return False
