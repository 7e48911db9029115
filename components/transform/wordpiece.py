"""BERT's WordPiece inside the TensorFlow graph, with the ids of `transformers.BertTokenizer` on every string.

The engine is TF Text's `FastWordpieceTokenizer` (Song et al. 2021, "Fast WordPiece Tokenization"). It agrees with
the reference on ordinary text. Texts on which it may not (control, format and private-use characters, code points
that its Unicode version classes otherwise, words of over 100 characters, invalid UTF-8, and for uncased
vocabularies anything beyond ASCII that changes) are found by a regular expression and rewritten, in the graph, to
texts on which it does. Only standard TensorFlow and TF Text ops are used.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from os import PathLike
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.core.pybinds import pywrap_fast_wordpiece_tokenizer_model_builder as model_builder

from components.errors import ConfigError
from components.transform.rewrite import MAX_WORD_CHARS, Rewriter, plain_patterns, splits_after
from components.transform.unicode_table import load_rules
from components.transform.vocabulary import SUFFIX, engine_vocabulary, read_vocabulary

_MAX_UTF8_BYTES = 4


class Encoded(NamedTuple):
    """Token ids of a batch, ready for the encoder but for padding.

    Attributes:
      input_ids: int32 [batch, (tokens)], `[CLS] text [SEP]`, and for each further segment `segment [SEP]`.
      segment_ids: int32 [batch, (tokens)], 0 for `[CLS] text [SEP]`, then 1 and 2.
      truncated: bool [batch], whether tokens were cut off.
      unknown: int32 [batch], number of `[UNK]` among `input_ids`.
    """

    input_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    truncated: tf.Tensor
    unknown: tf.Tensor


class WordPiece(tf.Module):
    """Tokenises raw strings as `transformers.BertTokenizer(…, split_special_tokens=True)` does.

    Holds only NumPy arrays; each call puts them into the current graph as constants (1.8 MB for BioBERT's
    vocabulary), so a module can be used in any graph and is saved whole with it. Bytes that are not UTF-8 count as
    U+FFFD, which BERT drops.

        wordpiece = WordPiece("vocab.txt")
        wordpiece.tokenize(["Aspirin reduced pain."])
        wordpiece.encode(["Aspirin reduced pain."], max_length=128).input_ids
    """

    def __init__(self, vocab: Sequence[str] | str | PathLike, *, lower_case: bool = False):
        """
        Args:
          vocab: the tokens in the order of their ids, or the path of a vocab.txt.
          lower_case: for uncased vocabularies: lower case and no accents.

        Raises:
          ConfigError, CheckpointError: see `read_vocabulary`.
        """
        super().__init__(name="wordpiece")
        tokens = tuple(read_vocabulary(vocab))
        self.vocab_size = len(tokens)
        self.lower_case = lower_case
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = map(tokens.index, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
        rules = load_rules()
        self._tokens = tokens
        self._model = _engine_model(tokens)
        self._rewrite = Rewriter(rules, lower_case=lower_case)
        self._plain_patterns = plain_patterns(rules, lower_case=lower_case)

    def tokenize(self, texts) -> tf.RaggedTensor:
        """Token ids without special tokens.

        Args:
          texts: string [batch].

        Returns:
          int32 [batch, (tokens)].
        """
        texts = tf.convert_to_tensor(texts, tf.string)
        texts.shape.assert_has_rank(1)
        plain = tf.fill(tf.shape(texts), True)
        for pattern in self._plain_patterns:
            plain &= tf.strings.regex_full_match(texts, pattern)
        lowered = tf.strings.lower(texts) if self.lower_case else texts  # ASCII letters only

        def rewrite_hostile():
            rows = tf.where(~plain)  # int64 [hostile, 1]
            return tf.tensor_scatter_nd_update(lowered, rows, self._rewrite(tf.gather_nd(texts, rows)))

        texts = tf.cond(tf.reduce_all(plain), lambda: lowered, rewrite_hostile)
        engine = tf_text.FastWordpieceTokenizer(model_buffer=tf.constant(self._model), token_out_type=tf.int32)
        return engine.tokenize(texts)

    def encode(self, texts, pairs=None, thirds=None, *, max_length: int) -> Encoded:
        """Token ids with special tokens, cut to a length, the longer segment first.

        Args:
          texts: string [batch].
          pairs: string [batch], the second segments, or None.
          thirds: string [batch], the third segments, or None. Cut to a length, they and the second ones are one.
          max_length: greatest number of tokens, special tokens included.

        Raises:
          ConfigError: `max_length` leaves no room for the special tokens.
        """
        segments = [tf.convert_to_tensor(part, tf.string) for part in (texts, pairs, thirds) if part is not None]
        special = 1 + len(segments)
        if max_length < special:
            raise ConfigError(f"max_length: {max_length} is less than the {special} special tokens; give more.")
        return _encoder(self._tokens, self.lower_case, len(segments), max_length - special)(*segments)

    def _encode(self, *segments: tf.Tensor, room: int) -> Encoded:
        tokens = self.tokenize(tf.concat(segments, 0))
        lengths = tf.split(tokens.row_lengths(), len(segments))
        kept = _kept(lengths, room)
        truncated = tf.reduce_any(tf.stack(kept, 1) < tf.stack(lengths, 1), 1)

        # Each row is pieced together from ranges of one pool: the tokens of the batch, [CLS], and a [SEP] for each
        # segment. Ragged concatenation and row ids would make dense tensors as wide as the longest text.
        count = tf.size(tokens.values, tf.int64)
        cls = tf.fill(tf.shape(truncated), count)  # the place of [CLS], once for each row
        starts, ends = [cls], [cls + 1]
        for segment, (start, length) in enumerate(zip(tf.split(tokens.row_starts(), len(kept)), kept, strict=True)):
            starts += [start, cls + 1 + segment]
            ends += [start + length, cls + 2 + segment]
        ranges = tf.ragged.range(tf.reshape(tf.stack(starts, 1), [-1]), tf.reshape(tf.stack(ends, 1), [-1]))
        pool = tf.concat([tokens.values, [self.cls_id], [self.sep_id] * len(segments)], 0)
        ids = tf.gather(pool, ranges.values)
        rows = tf.size(segments[0])
        firsts = [tokens.row_splits[rows * number] for number in range(1, len(segments))]
        segment = sum((tf.cast(tf.range(count) >= first, tf.int32) for first in firsts), tf.zeros([count], tf.int32))
        segment_ids = tf.gather(tf.concat([segment, [0], list(range(len(segments)))], 0), ranges.values)

        splits = ranges.row_splits[:: len(starts)]
        input_ids = tf.RaggedTensor.from_row_splits(ids, splits, validate=False)
        unknown = splits_after(tf.cast(ids == self.unk_id, tf.int32), splits)
        return Encoded(input_ids, input_ids.with_values(segment_ids), truncated, unknown[1:] - unknown[:-1])


@lru_cache(maxsize=8)
def _encoder(tokens: tuple[str, ...], lower_case: bool, segments: int, room: int) -> Callable[..., Encoded]:
    """A tokeniser's `encode`, traced once: TensorFlow Transform alone asks for it nine times, 0.25 s each."""
    encode = partial(WordPiece(tokens, lower_case=lower_case)._encode, room=room)
    return tf.function(encode, input_signature=[tf.TensorSpec([None], tf.string)] * segments, autograph=False)


@lru_cache(maxsize=4)
def _engine_model(tokens: tuple[str, ...]) -> np.ndarray:
    """The engine's automaton, uint8 [bytes]; kept, for one process traces a tokeniser many times over."""
    known = engine_vocabulary(tokens, load_rules())
    longest, unknown = MAX_WORD_CHARS * _MAX_UTF8_BYTES, known[tokens.index("[UNK]")]
    model = model_builder.build_fast_wordpiece_model(known, longest, SUFFIX, unknown, False, False)
    return np.frombuffer(model, np.uint8)


def _kept(lengths: list[tf.Tensor], room: int) -> list[tf.Tensor]:
    """Lengths, int64 [batch], to which segments of these lengths are cut so that they fit into `room` tokens."""
    first, *others = lengths
    if not others:
        return [tf.minimum(first, room)]
    kept, rest = _longest_first(first, tf.add_n(others), room)
    return [kept, rest] if len(others) == 1 else [kept, *_longest_first(others[0], others[1], rest)]


def _longest_first(first: tf.Tensor, second: tf.Tensor, room: int | tf.Tensor) -> list[tf.Tensor]:
    """Lengths, int64 [batch], to which the reference cuts two segments so that they fit into `room` tokens."""
    shorter = tf.minimum(first, second)
    longer = tf.maximum(shorter, room - shorter)
    half = tf.zeros_like(first) + room // 2
    both_cut = shorter + longer > room
    shorter, longer = tf.where(both_cut, half, shorter), tf.where(both_cut, half + room % 2, longer)
    swapped = first > second
    kept = tf.where(swapped, longer, shorter), tf.where(swapped, shorter, longer)
    return [tf.minimum(kept[0], first), tf.minimum(kept[1], second)]
