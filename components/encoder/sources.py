"""Where pretrained weights come from, and their tensors by name: three formats, and names on the Hugging Face hub."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from components.config import HUB_NAME
from components.encoder.torch_pickle import as_array, read_state_dict
from components.errors import CheckpointError

_Format = Literal["tf1", "safetensors", "torch"]
# By preference: the format, and its file, whole or as an index of shards.
_HUGGING_FACE: tuple[tuple[_Format, str, str], ...] = (
    ("safetensors", "model.safetensors", "model.safetensors.index.json"),
    ("torch", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Source:
    """Weights on disk.

    Attributes:
      format: `tf1` (`model.ckpt-*`), `safetensors` or `torch` (`pytorch_model.bin`).
      files: the files that hold tensors; for `tf1` the index and data files.
      prefix: of a TensorFlow checkpoint.
      config, vocab: `config.json` or `bert_config.json`, and `vocab.txt` or else `tokenizer.json` beside the weights,
        where present.
      tokenizer: what else tells of the tokeniser, by name: `tokenizer_config.json`, `tokenizer.json`,
        `added_tokens.json`, where present.
    """

    format: _Format
    files: tuple[Path, ...]
    prefix: str | None
    config: Path | None
    vocab: Path | None
    tokenizer: tuple[Path, ...] = ()

    def sha256(self) -> str:
        """One digest over the files' names and contents, in hexadecimal."""
        whole = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                whole.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def tensors(self, needed: Callable[[str], bool]) -> dict[str, np.ndarray | None]:
        """All tensors by the names they have in the files; bfloat16 as float32, and None for what is not needed.

        Raises:
          CheckpointError: a file is damaged, a needed tensor is of no type of floating point, or two files hold a
            tensor of one name.
        """
        if self.format == "tf1":
            return _read_tf1(str(self.prefix), needed)
        found: dict[str, np.ndarray | None] = {}
        file_of: dict[str, Path] = {}
        for file in self.files:
            read = _read_safetensors(file, needed) if self.format == "safetensors" else read_state_dict(file)
            for name in read:
                if name in found:
                    raise CheckpointError(
                        f"{file}: {name} stands in {file_of[name].name} too; remove the file that is not of the weights"
                    )
                file_of[name] = file
            found |= read
        return found


def find_source(name: str) -> Source:
    """The weights that `encoder.weights` names.

    Args:
      name: the prefix of a TensorFlow checkpoint (`…/model.ckpt-1000000`); a folder that holds one checkpoint, or
        `model.safetensors` (whole or in shards), or `pytorch_model.bin` (safetensors first); or a hub name at a
        pinned revision, `organisation/name@commit`, downloaded once into the hub's own cache (`HF_HOME`), from
        which it is read when `HF_HUB_OFFLINE` is set.

    Raises:
      CheckpointError: there are no weights, or more than one set of them.
    """
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.with_name(path.name + ".index").exists():
        return _tf1(path)
    match = HUB_NAME.match(name)
    if match:
        return _in_folder(_download(match["repo"], match["revision"]))
    raise CheckpointError(
        f"encoder.weights: {name} is neither a folder, nor the prefix of a TensorFlow checkpoint, nor a hub name "
        "with a pinned revision (organisation/name@40-digit commit)"
    )


def _in_folder(folder: Path) -> Source:
    config = _first(folder, "config.json", "bert_config.json")
    for kind, whole, index in _HUGGING_FACE:
        if (folder / index).exists():
            return Source(kind, _shards(folder / index), None, config, *_tokenizer(folder))
        if (folder / whole).exists():
            return Source(kind, (folder / whole,), None, config, *_tokenizer(folder))
    prefixes = [f.with_name(f.name.removesuffix(".index")) for f in sorted(folder.glob("*.ckpt*.index"))]
    if len(prefixes) == 1:
        return _tf1(prefixes[0])
    if prefixes:
        found = ", ".join(prefix.name for prefix in prefixes)
        raise CheckpointError(f"encoder.weights: {folder} holds several checkpoints ({found}); name one of them")
    raise CheckpointError(
        f"encoder.weights: {folder} holds neither model.safetensors, nor pytorch_model.bin, nor a model.ckpt-*.index"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = tuple(index.with_name(Path(name).name) for name in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        files = ()
    if not files:
        raise CheckpointError(f"{index}: is no index of shards (weight_map: a file by tensor); fetch it anew")
    return files


def _tf1(prefix: Path) -> Source:
    config = _first(prefix.parent, "bert_config.json", "config.json")
    files = (
        prefix.with_name(prefix.name + ".index"),
        *sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*")),
    )
    return Source("tf1", files, str(prefix), config, *_tokenizer(prefix.parent))


def _tokenizer(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    found = tuple(path for name in _TOKENIZER if (path := folder / name).exists())
    return _first(folder, "vocab.txt", "tokenizer.json"), found


def _first(folder: Path, *names: str) -> Path | None:
    return next((path for name in names if (path := folder / name).exists()), None)


def _download(repo: str, revision: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    beside = ["config.json", "vocab.txt", *_TOKENIZER]
    try:
        for _, whole, index in _HUGGING_FACE:
            # Not "*.safetensors": its variants and other models, which may stand beside it, are none of the weights.
            shards = whole.replace(".", "-*.")
            wanted = [*beside, whole, index, shards]
            folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
            if (folder / whole).exists() or (folder / index).exists():
                return folder
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"encoder.weights: {repo}@{revision} is not in the local cache and cannot be downloaded; "
            "connect once, or put its files into a folder and name that"
        ) from None
    except (AttributeError, NameError, TypeError):
        raise  # a fault of ours, or a client of another version
    except Exception as error:  # of HTTP, a proxy, the disk, or a transfer in its own library
        raise CheckpointError(f"encoder.weights: {repo}@{revision}: {type(error).__name__} from the hub") from None
    raise CheckpointError(f"encoder.weights: {repo}@{revision} has neither safetensors nor pytorch_model.bin")


def _read_tf1(prefix: str, needed: Callable[[str], bool]) -> dict[str, np.ndarray | None]:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        names = reader.get_variable_to_shape_map()
        return {name: reader.get_tensor(name) if needed(name) else None for name in names}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{prefix}: the checkpoint cannot be read ({type(error).__name__})") from None


def _read_safetensors(path: Path, needed: Callable[[str], bool]) -> dict[str, np.ndarray | None]:
    from safetensors import SafetensorError, deserialize

    try:
        found: dict[str, np.ndarray | None] = {}
        for name, entry in deserialize(path.read_bytes()):
            if not needed(name):
                found[name] = None
                continue
            if entry["dtype"] not in _SAFETENSORS_DTYPES:
                raise CheckpointError(f"{path}: {name} has the unsupported type {entry['dtype']}")
            values = as_array(bytes(entry["data"]), _SAFETENSORS_DTYPES[entry["dtype"]])
            found[name] = values.reshape(entry["shape"])
        return found
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
