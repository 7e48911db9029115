"""The Transform user function: raw text and labels to what the Trainer reads, and the serving graph of the same.

TFX imports this module and reloads it, so it defines no classes and registers nothing.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from components.config import NEIGHBOUR_BREAK
from components.errors import DataError
from components.transform.keys import text_key
from components.transform.wordpiece import WordPiece


def preprocessing_fn(inputs: Mapping[str, Any], custom_config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenises texts and turns label names into numbers.

    No output depends on an input that it does not need, so a graph without the labels, as in serving, still gives
    the others.

    Args:
      inputs: `text`, with `pairs` also `text_pair`, and `label` or (multilabel) `labels`, all strings, dense
        [batch] or [batch, 1] or sparse; an absent text is empty. And the features to pass through.
      custom_config: JSON values: `vocab_file` str, `lower_case` bool, `max_length` int (tokens, special ones
        included), `pairs` bool, `neighbours` bool (absent: False) whether a `text_pair` is of sentences before and
        after, `task` "binary", "multiclass" or "multilabel", `labels` list of names,
        `passthrough` list of features to hand on unchanged.

    Returns:
      `input_ids` sparse int64 [batch, (tokens)], unpadded; with `pairs` `segment_ids` likewise; `length`, `unknown`
      and `truncated`, int64 [batch]: tokens, `[UNK]` among them, and 1 where tokens were cut off; `key` int64
      [batch], which stands for the text (components/transform/keys.py); `label` int64 [batch], the place in
      `labels`, or `labels` float32 [batch, len(labels)], 1 where the label applies. While it runs, a label that is
      not in `labels` raises InvalidArgumentError.

    Raises:
      DataError: a feature is missing.
      ConfigError, CheckpointError: the vocabulary or `max_length` is not usable.
    """
    wordpiece = WordPiece(custom_config["vocab_file"], lower_case=custom_config["lower_case"])
    pairs = _one_string(_feature(inputs, "text_pair")) if custom_config["pairs"] else None
    texts = _one_string(_feature(inputs, "text"))
    segments = _before_and_after(pairs) if custom_config.get("neighbours") else [pairs]
    encoded = wordpiece.encode(texts, *segments, max_length=custom_config["max_length"])
    outputs = {
        "input_ids": _sparse(encoded.input_ids),
        "length": encoded.input_ids.row_lengths(),
        "unknown": tf.cast(encoded.unknown, tf.int64),
        "truncated": tf.cast(encoded.truncated, tf.int64),
        "key": text_key(texts, pairs),
    }
    if custom_config["pairs"]:
        outputs["segment_ids"] = _sparse(encoded.segment_ids)
    if custom_config["task"] == "multilabel":
        outputs["labels"] = _multi_hot(_feature(inputs, "labels"), custom_config["labels"])
    else:
        outputs["label"] = _label_index(_one_string(_feature(inputs, "label")), custom_config["labels"])
    return outputs | {name: _feature(inputs, name) for name in custom_config["passthrough"]}


def _feature(inputs: Mapping[str, Any], name: str) -> Any:
    if name not in inputs:
        raise DataError(
            f"Transform: the examples have no feature {name!r}, only {', '.join(sorted(inputs))}. "
            "Check the configured columns and the schema."
        )
    return inputs[name]


def _one_string(feature) -> tf.Tensor:
    """One string a row, [batch], from a dense or sparse feature; an absent value is the empty string."""
    if isinstance(feature, tf.SparseTensor):
        # Not sparse.to_dense: its width is that of the batch, which is 0 where no row has a value.
        rows = feature.dense_shape[0]
        first = tf.where(feature.indices[:, 1] == 0)[:, 0]
        values, indices = tf.gather(feature.values, first), tf.gather(feature.indices, first)[:, :1]
        return tf.tensor_scatter_nd_update(tf.fill([rows], ""), indices, values)
    return tf.reshape(feature, [-1])


def _before_and_after(pairs: tf.Tensor) -> list[tf.Tensor]:
    """The sentences before and those after, string [batch] each, of text_pairs that are made of neighbours."""
    # \C is any byte, also of what is not UTF-8.
    return [
        tf.strings.regex_replace(pairs, rf"{NEIGHBOUR_BREAK}\C*", "", replace_global=False),
        tf.strings.regex_replace(pairs, rf"^(?:\C*?{NEIGHBOUR_BREAK}|\C*)", "", replace_global=False),
    ]


def _sparse(ragged: tf.RaggedTensor) -> tf.SparseTensor:
    return tf.cast(ragged, tf.int64).to_sparse()


def _label_index(label: tf.Tensor, labels: list[str]) -> tf.Tensor:
    return tf.argmax(_matches(label, labels), axis=1)


def _multi_hot(feature, labels: list[str]) -> tf.Tensor:
    if not isinstance(feature, tf.SparseTensor):
        feature = tf.sparse.from_dense(feature)
    matches = _matches(feature.values, labels)
    rows = tf.cast(feature.dense_shape[0], tf.int64)
    return tf.minimum(tf.math.unsorted_segment_sum(matches, feature.indices[:, 0], rows), 1.0)


def _matches(names: tf.Tensor, labels: list[str]) -> tf.Tensor:
    """float32 [names, labels], 1 where the name is the label; every name must be one of them."""
    matches = tf.cast(names[:, tf.newaxis] == tf.constant(labels)[tf.newaxis, :], tf.float32)
    unknown = 1 - tf.cast(tf.reduce_sum(matches, 1), tf.int32)
    # Fails on an unknown label. An assertion is stateful: serving, which has no labels, could not leave it out.
    known = tf.gather([1.0], unknown, name="label_is_not_one_of_the_configured_labels")
    return matches * known[:, tf.newaxis]
