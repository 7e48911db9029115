"""Checkpoints of a training run: one file, complete or absent, from which a killed run goes on bit for bit.

A checkpoint is an uncompressed `.npz`: every variable by number, and the run's own account of itself as JSON
under the name `progress`. It is written beside its name and renamed, so a kill leaves the one before.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from components.errors import CheckpointError

_FILE = "checkpoint.npz"


def save(folder: str, arrays: Mapping[str, Sequence[np.ndarray]], progress: dict[str, Any]) -> None:
    """Writes the checkpoint of `folder` anew.

    Args:
      folder: local, or any path that tf.io.gfile writes.
      arrays: groups of arrays by name, such as the model's variables.
      progress: JSON values.
    """
    tf.io.gfile.makedirs(folder)
    target = f"{folder}/{_FILE}"
    flat = {f"{group}/{n}": array for group, list_ in arrays.items() for n, array in enumerate(list_)}
    flat["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with (
        tf.io.gfile.GFile(f"{target}.partial", "wb") as file,
        zipfile.ZipFile(_Stream(file), "w") as archive,  # type: ignore[call-overload]
    ):
        for name, array in flat.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    tf.io.gfile.rename(f"{target}.partial", target, overwrite=True)


class _Stream:
    """A GFile being written, which cannot seek; zipfile then writes front to back."""

    def __init__(self, file: tf.io.gfile.GFile) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def load(folder: str) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]] | None:
    """The groups of arrays and the progress of the newest checkpoint, or None where there is none.

    Raises:
      CheckpointError: the file is damaged.
    """
    target = f"{folder}/{_FILE}"
    if not tf.io.gfile.exists(target):
        return None
    try:
        with tf.io.gfile.GFile(target, "rb") as file, np.load(file, allow_pickle=False) as stored:
            progress = json.loads(stored["progress"].tobytes())
            names = sorted(
                (name for name in stored.files if "/" in name), key=lambda name: int(name.rpartition("/")[2])
            )
            arrays: dict[str, list[np.ndarray]] = {}
            for name in names:
                arrays.setdefault(name.rpartition("/")[0], []).append(stored[name])
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, tf.errors.OpError) as error:
        raise CheckpointError(
            f"{target}: the training checkpoint cannot be read ({type(error).__name__}); "
            "delete its folder to train from the start"
        ) from None
    return arrays, progress


def copy(folder: str, target: str) -> None:
    """Copies the files of a folder into another one, which is made."""
    tf.io.gfile.makedirs(target)
    for name in tf.io.gfile.listdir(folder):
        tf.io.gfile.copy(f"{folder}/{name}", f"{target}/{name}", overwrite=True)


def remove(folder: str) -> None:
    """Deletes the checkpoint of a run that ended well."""
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)
