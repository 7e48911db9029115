"""`pytorch_model.bin` without PyTorch and without running what a pickle asks for.

A state dict is a pickle that names a handful of functions, beside the raw bytes of its tensors. The unpickler here
knows stand-ins for those functions and refuses every other name, so a prepared file can call nothing.
Both layouts are read: the zip archive (PyTorch 1.6 and later) and the sequence of pickles before it.
Source: `torch/serialization.py`, `torch/_utils.py`.
"""

from __future__ import annotations

import io
import lzma
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from components.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1",
    "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip


class _Storage:
    """The bytes behind one or more tensors; in the older layout they come after the pickle."""

    def __init__(self, dtype: str, count: int) -> None:
        self.dtype = dtype
        self.count = count
        self.data = b""

    @property
    def item_size(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The tensor, copied out of its storage; bfloat16 becomes float32.

        Raises:
          ValueError: the tensor reaches beyond its storage.
        """
        values = as_array(self.storage.data, self.storage.dtype)
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if self.offset < 0 or min((*self.strides, 0)) < 0 or last >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps).copy()


def as_array(data: bytes, dtype: str) -> np.ndarray:
    """Raw little-endian values, flat; "bfloat16" becomes float32."""
    if dtype != "bfloat16":
        return np.frombuffer(data, dtype)
    # bfloat16 is the upper half of a float32
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storage_of: Callable[[str, str, int], _Storage]) -> None:
        super().__init__(file)
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no plain state dict needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(part is not None for part in view):
            raise pickle.UnpicklingError("it holds something other than plain tensors")
        return self._storage_of(str(key), dtype, int(count))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `pytorch_model.bin` by name.

    Raises:
      CheckpointError: the file is damaged, or is not a plain state dict.
    """
    try:
        found = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(found, dict):
            raise pickle.UnpicklingError("it is no state dict")
        named = {name: value for name, value in found.items() if isinstance(value, _Tensor)}
        if len(named) != len(found) or not all(isinstance(name, str) for name in named):
            raise pickle.UnpicklingError("it holds other things than named tensors")
        return {name: value.array() for name, value in named.items()}
    except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: not a state dict that can be read safely: {error}") from None
    except (
        AttributeError, IndexError, ImportError, MemoryError, OverflowError, RuntimeError, lzma.LZMAError, zlib.error,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path}: a damaged state dict ({type(error).__name__})") from None


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (pickle_name,) = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        folder = pickle_name.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        storages: dict[str, _Storage] = {}

        def storage_of(key: str, dtype: str, count: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, count)
                storages[key].data = archive.read(f"{folder}data/{key}")
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickle_name)), storage_of).load()


def _read_legacy(path: Path) -> Any:
    storages: dict[str, _Storage] = {}

    def storage_of(key: str, dtype: str, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, count))

    def refuse(key: str, dtype: str, count: int) -> _Storage:
        raise pickle.UnpicklingError("there are tensors where there should be none")

    with path.open("rb") as file:
        if _Unpickler(file, refuse).load() != _LEGACY_MAGIC:
            raise ValueError("it does not begin as PyTorch's files do")
        _Unpickler(file, refuse).load()  # protocol version
        machine = _Unpickler(file, refuse).load()
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise ValueError("its numbers are not little-endian")
        found = _Unpickler(file, storage_of).load()
        for key in _Unpickler(file, refuse).load():
            storage = storages[str(key)]
            count = int.from_bytes(file.read(8), "little")
            storage.data = file.read(count * storage.item_size)
            if count != storage.count or len(storage.data) != count * storage.item_size:
                raise ValueError("it ends before its tensors do")
        return found
