"""A number that stands for an example's text where the text itself must not go."""

import tensorflow as tf

_BUCKETS = 2**62


def text_key(texts, pairs=None) -> tf.Tensor:
    """FarmHash of a text and its pair, the same in a graph and outside, from run to run.

    Args:
      texts: string [batch].
      pairs: string [batch], or None where texts have no second segment.

    Returns:
      int64 [batch], from 0 to 2**62 - 1.
    """
    texts = tf.convert_to_tensor(texts, tf.string)
    pairs = tf.fill(tf.shape(texts), "") if pairs is None else pairs
    return tf.strings.to_hash_bucket_fast(tf.strings.join([texts, pairs], separator="\x1f"), _BUCKETS)
