"""What is measured of a text in place of the text itself.

A statistics artifact is kept for years and shown to people, so it must not hold texts, which TFDV's list of the
most frequent values of a string feature would. Each text is replaced by four numbers, to which TFDV's ordinary
numeric statistics, schema bounds and drift comparators apply.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from components.transform.vocab_file import read_tokens

# Dropped before statistics: they hold texts, or identify documents.
PRIVATE_FEATURES = ("text", "text_pair", "id")
CHARACTERS, TOKENS, UNKNOWN, COVERAGE = "characters", "tokens", "unknown_tokens", "token_coverage"
DERIVED_FEATURES = (CHARACTERS, TOKENS, UNKNOWN, COVERAGE)
PAIR = "pair_"  # before the names of the same measures of `text_pair`, where that is a column of the data
PAIR_FEATURES = tuple(PAIR + name for name in DERIVED_FEATURES)
PREFIXES = {"text": "", "text_pair": PAIR}  # of the measures' names, by the feature that is measured


class TextMeasurer:
    """Measures texts with the pipeline's own WordPiece.

    - `characters`: Unicode code points.
    - `tokens`: WordPiece tokens, without special ones and before truncation.
    - `unknown_tokens`: those that are `[UNK]`.
    - `token_coverage`: share of the text's words that stand whole in the vocabulary; a domain that the vocabulary
      does not fit shows here. 1 for a text without words.
    """

    def __init__(self, vocab_file: str, lower_case: bool) -> None:
        from components.transform.wordpiece import WordPiece

        self._wordpiece = WordPiece(vocab_file, lower_case=lower_case)
        vocabulary = read_tokens(vocab_file)
        self._continues = np.array([token.startswith("##") for token in vocabulary])
        self._unknown = vocabulary.index("[UNK]")

    def measure(self, texts: list[bytes]) -> dict[str, np.ndarray]:
        """Args: texts, UTF-8. Returns: each derived feature as int64 or float32 [len(texts)]."""
        import tensorflow as tf

        ragged = self._wordpiece.tokenize(tf.constant(texts, tf.string, shape=[len(texts)]))
        ids, splits = ragged.values.numpy(), ragged.row_splits.numpy()
        rows = len(texts)
        row_of = np.repeat(np.arange(rows), np.diff(splits))
        starts = ~self._continues[ids]
        # A word is whole when the next token of the same text does not continue it, and it is known.
        continued = np.zeros(len(ids), bool)
        continued[:-1] = self._continues[ids[1:]] & (row_of[1:] == row_of[:-1])
        whole = starts & ~continued & (ids != self._unknown)
        words = np.bincount(row_of, starts, rows)
        return {
            CHARACTERS: tf.strings.length(texts, unit="UTF8_CHAR").numpy().astype(np.int64),
            TOKENS: np.diff(splits).astype(np.int64),
            UNKNOWN: np.bincount(row_of, ids == self._unknown, rows).astype(np.int64),
            COVERAGE: np.where(words > 0, np.bincount(row_of, whole, rows) / np.maximum(words, 1), 1.0).astype(
                np.float32
            ),
        }


def measured_columns(texts: list[bytes], measurer: TextMeasurer, prefix: str = "") -> dict[str, pa.ListArray]:
    """The columns of a TFXIO batch that stand for texts, their names with `prefix`."""
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
    return {
        prefix + name: pa.ListArray.from_arrays(offsets, pa.array(values))
        for name, values in measurer.measure(texts).items()
    }


def replace_texts(batch: pa.RecordBatch, measurer: TextMeasurer, pairs: bool = False) -> pa.RecordBatch:
    """Args: a TFXIO batch (every column a list array); whether `text_pair` is measured, too.
    Returns: the same rows, texts replaced by their measures."""
    columns = {
        name: batch.column(index) for index, name in enumerate(batch.schema.names) if name not in PRIVATE_FEATURES
    }
    for feature in ("text", "text_pair") if pairs else ("text",):
        index = batch.schema.get_field_index(feature)  # -1: no row of the batch has it
        found = batch.column(index).to_pylist() if index >= 0 else [None] * batch.num_rows
        columns |= measured_columns([values[0] if values else b"" for values in found], measurer, PREFIXES[feature])
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
