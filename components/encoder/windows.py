"""Long texts as overlapping windows: each is a row of its own to the encoder, and the head pools over all of a text's.

    [CLS] a b c d e f g h [SEP], with windows of 6 tokens that share 2  →  [CLS] a b c d [SEP]
                                                                           [CLS] c d e f [SEP]
                                                                           [CLS] e f g h [SEP]

A text that fits into one window is left as it is, to the bit. This is done in the model's graph, in training as in
serving; Transform gives whole texts, up to what `max_windows` windows hold.
"""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from components.encoder.packing import Batch

_SPECIAL = 2  # [CLS] and [SEP]


class Windows(NamedTuple):
    """How texts are cut.

    Attributes:
      length: greatest number of tokens of a window, special ones included.
      overlap: tokens that a window shares with the one before.
    """

    length: int
    overlap: int

    def split(self, batch: Batch) -> Batch:
        """The packed batch of all windows.

        Args:
          batch: `ids` int32 [tokens] and `row_lengths` int32 [texts], each text with its special tokens at its ends.

        Returns:
          `ids` and `row_lengths` of the windows, the texts' in order; `text_of_row` int32 [windows], the text that a
          window is of; `skipped` int32 [windows], how many of the text's tokens after its first come before the
          window's; `text_lengths` int32 [texts], the row lengths given.
        """
        room = self.length - _SPECIAL
        step = room - self.overlap
        lengths = ops.cast(batch["row_lengths"], "int32")
        ends = ops.cumsum(lengths)
        beyond = ops.maximum(lengths - self.length, 0)
        counts = 1 + (beyond + step - 1) // step  # windows of each text
        last = ops.cumsum(counts)
        windows = ops.arange(ops.sum(counts), dtype="int32")
        texts = ops.cast(ops.searchsorted(last, windows, side="right"), "int32")
        skipped = (windows - ops.take(last - counts, texts, axis=0)) * step  # tokens of the text before the window's
        row_lengths = ops.minimum(ops.take(lengths, texts, axis=0) - skipped, self.length)

        row_ends = ops.cumsum(row_lengths)
        tokens = ops.arange(ops.sum(row_lengths), dtype="int32")
        rows = ops.cast(ops.searchsorted(row_ends, tokens, side="right"), "int32")
        place = tokens - ops.take(row_ends - row_lengths, rows, axis=0)
        end = ops.take(ends, ops.take(texts, rows, axis=0), axis=0)
        start = end - ops.take(lengths, ops.take(texts, rows, axis=0), axis=0)
        source = start + place + ops.where(place > 0, ops.take(skipped, rows, axis=0), 0)
        source = ops.where(place == ops.take(row_lengths, rows, axis=0) - 1, end - 1, source)
        return {
            "ids": ops.take(batch["ids"], source, axis=0),
            "row_lengths": row_lengths,
            "text_of_row": texts,
            "skipped": skipped,
            "text_lengths": lengths,
        }
