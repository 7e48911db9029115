"""What the encoder's frozen layers give for every token, computed once and kept on disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import tensorflow as tf

from components.errors import PipelineError
from components.trainer.batches import Examples, plan_prediction


def with_hidden(examples: Examples, path: str, encode: Callable[..., tf.Tensor], width: int, dtype: str) -> Examples:
    """The examples with `hidden`, taken from `path` where an earlier try of the same run has left it.

    Args:
      path: a local file; it is complete or absent.
      encode: from a packed batch to [tokens, width].
      dtype: of what `encode` gives, "float32" or "bfloat16".

    Raises:
      PipelineError: the disk has no room for it.
    """
    # NumPy's files do not know bfloat16: its bits are kept.
    stored, kind = (np.uint16, ml_dtypes.bfloat16) if dtype == "bfloat16" else (np.float32, np.float32)
    if not os.path.exists(path):
        partial = f"{path}.partial"
        array = _reserved(partial, (len(examples.ids), width), np.dtype(stored))
        for rows in plan_prediction(examples.lengths):
            found = np.asarray(encode(examples.batch(rows))).view(stored)
            parts = np.split(found, np.cumsum(examples.lengths[rows])[:-1])
            for span, part in zip(examples.spans(rows), parts, strict=True):
                array[span] = part
        array.flush()
        del array
        os.replace(partial, path)
    return replace(examples, hidden=np.load(path, mmap_mode="r").view(kind))


def remove_hidden(path: str) -> None:
    """Deletes what an earlier stage kept, complete or not."""
    for name in (path, f"{path}.partial"):
        if os.path.exists(name):
            os.remove(name)


def _reserved(path: str, shape: tuple[int, int], dtype: np.dtype) -> np.memmap:
    """A new .npy file, mapped, whose room on the disk is taken beforehand: a full disk is an error now, not a SIGBUS
    in the middle of a write."""
    size = shape[0] * shape[1] * dtype.itemsize
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remove_hidden(path)
        raise PipelineError(
            f"Trainer: the frozen layers' outputs take {size >> 20} MiB, and {os.path.dirname(path)} has no room for "
            "them; free some, or set cache = false in that stage of training.stages"
        ) from None
    return array
