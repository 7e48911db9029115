"""What BERT's reference tokeniser does with each Unicode code point, as compact tables for the graph.

The rules stand in `unicode_rules.txt`, written by `python -m components.transform.unicode_probe`, which asks the
installed tokenisers about every code point. A test derives them anew and compares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

CODE_POINTS = 0x110000
# The four things that a code point can be to a BERT pre-tokeniser.
DROP, SPACE, ISOLATE, LETTER = range(4)
CLASS_NAMES = ("drop", "space", "isolate", "letter")
RULES_FILE = Path(__file__).with_name("unicode_rules.txt")
PAGE_SIZE = 256
_HANGUL_FIRST, _HANGUL_COUNT = 0xAC00, 11172


@dataclass(frozen=True)
class UnicodeRules:
    """The reference's view of all code points, and the engine's where it is another.

    Attributes:
      reference: uint8 [0x110000], class of each code point for `transformers.BertTokenizer`.
      engine: uint8 [0x110000], class of each code point for `tensorflow_text.FastWordpieceTokenizer`.
      fold: what an uncased vocabulary makes of a code point (canonical decomposition, accents dropped,
        lower case), for each code point that is changed by it.
    """

    reference: np.ndarray
    engine: np.ndarray
    fold: dict[int, tuple[int, ...]]


@cache
def load_rules() -> UnicodeRules:
    """Reads `unicode_rules.txt`; the arrays are shared and read-only."""
    reference = np.full(CODE_POINTS, LETTER, np.uint8)
    fold = dict(hangul_decompositions())
    engine_lines = []
    for line in RULES_FILE.read_text(encoding="ascii").splitlines():
        if not line or line.startswith("#"):
            continue
        kind, first, last, *rest = line.split()
        code_points = slice(int(first, 16), int(last, 16) + 1)
        if kind == "class":
            reference[code_points] = CLASS_NAMES.index(rest[0])
        elif kind == "engine":
            engine_lines.append((code_points, CLASS_NAMES.index(rest[0])))
        else:  # fold: consecutive code points go to consecutive ones, or all of them to the same sequence
            targets = tuple(int(target, 16) for target in rest)
            for step, code_point in enumerate(range(code_points.start, code_points.stop)):
                fold[code_point] = (targets[0] + step,) if len(targets) == 1 else targets
    engine = reference.copy()
    for code_points, value in engine_lines:
        engine[code_points] = value
    reference.flags.writeable = engine.flags.writeable = False
    return UnicodeRules(reference, engine, fold)


def hangul_decompositions() -> Iterator[tuple[int, tuple[int, ...]]]:
    """Hangul syllables into their two or three jamo (Unicode 3.12, arithmetic decomposition)."""
    for index in range(_HANGUL_COUNT):
        lead, rest = divmod(index, 588)
        vowel, tail = divmod(rest, 28)
        jamo = (0x1100 + lead, 0x1161 + vowel, 0x11A7 + tail)
        yield _HANGUL_FIRST + index, jamo if tail else jamo[:2]


def two_level(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a table over all code points into pages and keeps equal pages once.

    Args:
      values: [0x110000], any dtype.

    Returns:
      The page of each block of 256 code points, int32 [4352], and the pages end to end, dtype of `values`:
      `values[c] == pages[page_of[c // 256] * 256 + c % 256]`.
    """
    pages: dict[bytes, int] = {}  # numpy.unique sorts them, which takes as long as all the rest of a tokeniser
    page_of = [pages.setdefault(page.tobytes(), len(pages)) for page in values.reshape(-1, PAGE_SIZE)]
    return np.array(page_of, np.int32), np.frombuffer(b"".join(pages), values.dtype)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true values in a bool vector."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def character_class(mask: np.ndarray) -> str:
    """The inside of an RE2 character class that holds the code points where `mask` is true."""
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in runs(mask))
