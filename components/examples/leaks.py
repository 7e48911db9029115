"""Texts that stand in two splits, found by their hashes in memory that does not grow with the data.

A worker writes the hashes of its rows, sorted, to a file for each item and split. Here the files are read side by side
from front to back, each byte once: all hashes of one range of values from every file, at most about `ROWS_AT_ONCE` of
them, then those of the next range.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HASH_BYTES = 16  # 128 bits: among 10^9 rows a false match has a chance of 10^-20
ROWS_AT_ONCE = 1 << 20
_LEAST_READ = 1 << 8  # hashes read from a file at a time
_PAIR = np.dtype("<u8")


def text_hash(text: bytes, text_pair: bytes | None = None) -> bytes:
    """The hash of what the model is shown of a row: the text, and text_pair where it comes from a column."""
    digest = hashlib.blake2b(text, digest_size=HASH_BYTES)
    if text_pair is not None:
        digest.update(b"\x1f" + text_pair)
    return digest.digest()


def each_hash(hashes: bytes) -> frozenset[bytes]:
    """The different ones of hashes that stand end to end."""
    return frozenset(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))


def sorted_hashes(hashes: bytes) -> bytes:
    """The hashes, end to end, in the order that `find_leaks` wants."""
    table = _table(hashes)
    return table[np.lexsort((table[:, 1], table[:, 0]))].tobytes()


def _table(hashes: bytes) -> np.ndarray:
    return np.frombuffer(hashes, dtype=_PAIR).reshape(-1, 2)  # [rows, 2] uint64


@dataclass(frozen=True)
class Leak:
    """The texts that two splits share: how many different ones, and in how many rows of each."""

    splits: tuple[str, str]
    texts: int
    rows: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """As it stands in an ingest report."""
        return {
            "splits": list(self.splits), "texts": self.texts, "rows": dict(zip(self.splits, self.rows, strict=True))
        }  # fmt: skip


def find_leaks(
    files: Mapping[str, Sequence[str]],
    read: Callable[[str, int, int], bytes],
    rows: int,
    rows_at_once: int = ROWS_AT_ONCE,
) -> tuple[list[Leak], dict[tuple[str, str], bytes]]:
    """Compares every two splits.

    Args:
      files: by split, the paths of its files of sorted hashes.
      read: gives of a path, from a byte on, at most so many bytes.
      rows: of all splits together.
      rows_at_once: how many hashes may be held in memory, about.

    Returns:
      The leaks, pairs without one left out, and by pair the hashes of the shared texts, end to end.
    """
    pairs = list(itertools.combinations(files, 2))
    texts = dict.fromkeys(pairs, 0)
    counts = {pair: [0, 0] for pair in pairs}
    shared: dict[tuple[str, str], list[bytes]] = {pair: [] for pair in pairs}
    ranges = max(1, -(-rows // rows_at_once))
    step = max(_LEAST_READ, rows // (ranges * max(1, sum(map(len, files.values())))))
    readers = {split: [_Sorted(path, read, step) for path in paths] for split, paths in files.items()}
    for index in range(1, ranges + 1):
        high = (index << 64) // ranges
        tables = {
            split: np.concatenate([_table(b""), *(one.below(high) for one in own)]) for split, own in readers.items()
        }
        for first, second in pairs:
            found, first_rows, second_rows = _intersection(tables[first], tables[second])
            texts[first, second] += len(found)
            counts[first, second][0] += first_rows
            counts[first, second][1] += second_rows
            shared[first, second].extend(found)
    leaks = [Leak(pair, texts[pair], (counts[pair][0], counts[pair][1])) for pair in pairs if texts[pair]]
    return leaks, {leak.splits: b"".join(sorted(shared[leak.splits])) for leak in leaks}


class _Sorted:
    """A file of sorted hashes, read `step` of them at a time."""

    def __init__(self, path: str, read: Callable[[str, int, int], bytes], step: int) -> None:
        self._path, self._read, self._size = path, read, step * HASH_BYTES
        self._at = 0
        self._whole = False
        self._rest = _table(b"")  # read, and not below the last bound

    def below(self, bound: int) -> np.ndarray:
        """The hashes whose first half is below the bound, uint64 [rows, 2], without those below the bound before."""
        tables = [self._rest]
        while not self._whole and not (len(tables[-1]) and int(tables[-1][-1, 0]) >= bound):
            content = self._read(self._path, self._at, self._size)
            self._at += len(content)
            self._whole = len(content) < self._size
            tables.append(_table(content))
        table = np.concatenate(tables)
        end = len(table) if bound > np.iinfo(_PAIR).max else int(np.searchsorted(table[:, 0], np.uint64(bound)))
        self._rest = table[end:].copy()  # a view would keep all of it in memory
        return table[:end]


def _intersection(first: np.ndarray, second: np.ndarray) -> tuple[set[bytes], int, int]:
    """The hashes in both tables, and the rows of each that have one. The halves are compared one after the other."""
    halves = np.intersect1d(first[:, 0], second[:, 0])
    a = [row.tobytes() for row in first[np.isin(first[:, 0], halves)]] if len(halves) else []
    b = [row.tobytes() for row in second[np.isin(second[:, 0], halves)]] if len(halves) else []
    both = set(a) & set(b)
    return both, sum(row in both for row in a), sum(row in both for row in b)
