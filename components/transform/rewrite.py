"""Turns a hostile text into a plain one that the WordPiece engine gives the reference's ids for, in the graph.

Works on code points: dropped ones go, every kind of space becomes a space, what the reference isolates gets spaces
around it, a letter that the engine would cut at becomes a private-use letter, and a word of over 100 characters
becomes a letter that no vocabulary has, hence `[UNK]`. For uncased vocabularies the text is folded first.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from components.transform.unicode_table import (
    CODE_POINTS,
    DROP,
    ISOLATE,
    LETTER,
    PAGE_SIZE,
    SPACE,
    UnicodeRules,
    character_class,
    two_level,
)

MAX_WORD_CHARS = 100  # the reference gives [UNK] for a longer word
# The reference drops private-use code points from every text, so those that the engine meets are only ever ours.
UNKNOWN_LETTER = 0xE000  # begins no token of any vocabulary
_FIRST_STAND_IN = 0xE001
_CLASSES = 4
_SPACE_CHAR = ord(" ")


def stand_ins(rules: UnicodeRules) -> dict[int, int]:
    """The private-use letter for each code point that the engine would cut a word at but the reference would not."""
    reference, engine = rules.reference, rules.engine
    lost = (reference == LETTER) & (engine != LETTER)
    lost |= (reference == ISOLATE) & (engine != ISOLATE) & (engine != LETTER)
    return {int(code_point): _FIRST_STAND_IN + rank for rank, code_point in enumerate(lost.nonzero()[0])}


def plain_patterns(rules: UnicodeRules, *, lower_case: bool) -> tuple[str, str]:
    """RE2 patterns that a text must match in full, both of them, to be given to the engine as it is.

    The first is about its code points. The second bounds its words: a run without a space holds every word in it,
    whatever else the reference cuts it at. One pattern for both would be hundreds of ranges times 101 states, which
    overflows RE2's cache. Bytes that are not UTF-8 match neither.
    """
    hostile = rules.reference != rules.engine
    hostile[0xD800:0xE000] = True  # RE2 takes surrogates for UTF-8
    if lower_case:
        for code_point, folded in rules.fold.items():
            hostile[code_point] |= folded != (ord(chr(code_point).lower()),) if code_point < 128 else True
    run = f"[^ ]{{0,{MAX_WORD_CHARS}}}"
    return f"[^{character_class(hostile)}]*", f"(?:{run} )*{run}"


class Rewriter:
    """The tables of the rewriting as NumPy arrays, and the graph that uses them."""

    def __init__(self, rules: UnicodeRules, *, lower_case: bool):
        code = rules.reference.astype(np.int32)
        for code_point, letter in stand_ins(rules).items():
            code[code_point] |= letter * _CLASSES
        self._classes = two_level(code)
        self._fold = _FoldTable.build(rules.fold) if lower_case else None

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Rewrites texts: string [batch] to string [batch]."""
        # In Python, a broken sequence decodes to U+FFFD, which the reference drops.
        decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="ignore")
        chars, splits = decoded.values, decoded.row_splits  # int32 [chars], int64 [batch + 1]
        if self._fold is not None:
            chars, splits = self._fold(chars, splits)

        code = _look_up(self._classes, chars)
        classes, letters = code % _CLASSES, code // _CLASSES
        chars = tf.where(letters > 0, letters, chars)
        chars = tf.where(classes == SPACE, _SPACE_CHAR, chars)
        kept = classes != DROP
        splits = splits_after(tf.cast(kept, tf.int64), splits)
        chars, classes = tf.boolean_mask(chars, kept), tf.boolean_mask(classes, kept)

        isolated = classes == ISOLATE
        in_long_word, begins_word = _long_words(classes == LETTER, splits)
        chars = tf.where(in_long_word, UNKNOWN_LETTER, chars)
        spaces = tf.fill(tf.shape(chars), _SPACE_CHAR)
        wanted = tf.stack([isolated, ~in_long_word | begins_word, isolated], 1)  # [chars, 3]
        splits = splits_after(tf.math.count_nonzero(wanted, axis=1), splits)
        chars = tf.boolean_mask(tf.stack([spaces, chars, spaces], 1), wanted)
        return tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(chars, splits, validate=False), "UTF-8")


class _FoldTable(NamedTuple):
    """Case folding: each code point's place among the sequences; sequence 0 stands for "as it is"."""

    place: tuple[np.ndarray, np.ndarray]  # two-level, int32
    splits: np.ndarray  # int64 [sequences + 1]
    values: np.ndarray  # int32

    @classmethod
    def build(cls, fold: dict[int, tuple[int, ...]]) -> "_FoldTable":
        place = np.zeros(CODE_POINTS, np.int32)
        place_of: dict[tuple[int, ...], int] = {}
        for code_point, sequence in fold.items():
            place[code_point] = place_of.setdefault(sequence, len(place_of) + 1)
        sequences = [(-1,), *place_of]
        splits = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        return cls(two_level(place), splits, np.array([char for one in sequences for char in one], np.int32))

    def __call__(self, chars: tf.Tensor, splits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = _look_up(self.place, chars)
        sequences = tf.RaggedTensor.from_row_splits(tf.constant(self.values), tf.constant(self.splits), validate=False)
        folded = tf.gather(sequences, place)  # [chars, (sequence)]
        same = tf.where(place == 0)  # int64 [unchanged, 1]
        at = tf.gather_nd(folded.row_splits, same)[:, tf.newaxis]
        chars = tf.tensor_scatter_nd_update(folded.values, at, tf.gather_nd(chars, same))
        return chars, tf.gather(folded.row_splits, splits)


def _look_up(table: tuple[np.ndarray, np.ndarray], chars: tf.Tensor) -> tf.Tensor:
    page_of, pages = map(tf.constant, table)
    page = tf.gather(page_of, chars // PAGE_SIZE)
    return tf.gather(pages, page * PAGE_SIZE + chars % PAGE_SIZE)


def splits_after(counts: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
    """Row splits once each element has become `counts` elements."""
    return tf.gather(tf.concat([[0], tf.cumsum(counts)], 0), splits)


def _long_words(letter: tf.Tensor, splits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which characters are in a word that is too long, and which begin a word: bool [chars] each."""
    # Row ids of a ragged tensor come from tf.repeat, which makes a dense [rows, longest row]: not with long texts.
    count = tf.size(letter, tf.int64)
    rows_begin = tf.scatter_nd(splits[:-1, tf.newaxis], tf.ones_like(splits[:-1]), [count + 1])[:-1] > 0
    after_letter = tf.concat([[False], letter], 0)[:-1]
    begins = letter & (rows_begin | ~after_letter)
    word = tf.where(letter, tf.cumsum(tf.cast(begins, tf.int32)), 0)  # 0: in no word
    words = tf.math.count_nonzero(begins, dtype=tf.int32) + 1
    length = tf.math.unsorted_segment_sum(tf.cast(letter, tf.int32), word, words)
    return letter & (tf.gather(length, word) > MAX_WORD_CHARS), begins
