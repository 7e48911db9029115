"""A SavedModel with the pipeline's signatures whose answers are counts of bytes: small, quick, any string will do."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np
import tensorflow as tf

CLASSES = ("A", "B", "C")


class ToyModel(tf.Module):
    """softmax (or sigmoid) of the shares of bytes in 16 buckets, times a matrix.

    Args:
      pairs: whether `text_pair` is an input.
      multilabel: sigmoid and a mask instead of softmax and a name.
      fault: "" or what is wrong with the export: "differs", "examples_differ", "breaks_on_bytes" (fails on text that
        is no UTF-8), "nan_when_empty", "slow" (some tenths of a second an answer).
      seed: of the matrix.
    """

    def __init__(self, pairs: bool = False, multilabel: bool = False, fault: str = "", seed: int = 1) -> None:
        super().__init__()
        self.pairs, self.multilabel, self.fault = pairs, multilabel, fault
        generator = np.random.default_rng(seed)
        self.weights = tf.Variable(generator.normal(size=(16, len(CLASSES))).astype(np.float32) * 3)

    def probabilities(self, texts, pairs=None) -> tf.Tensor:
        """Args: string [batch]. Returns: float32 [batch, 3]."""
        whole = texts if pairs is None else tf.strings.join([texts, pairs], "|")
        if self.fault == "breaks_on_bytes":
            # Used, since a graph optimiser drops stateless ops that nothing needs.
            characters = tf.strings.unicode_decode(whole, "UTF-8", errors="strict").flat_values
            whole = tf.strings.join([whole, tf.gather(["", ""], tf.cast(tf.size(characters) < 0, tf.int32))])
        pieces = tf.strings.bytes_split(whole)
        buckets = tf.strings.to_hash_bucket_fast(pieces.flat_values, 16)
        rows = tf.cast(tf.shape(texts)[0], tf.int64)
        counts = tf.math.unsorted_segment_sum(tf.one_hot(buckets, 16), pieces.value_rowids(), rows)
        total = tf.reduce_sum(counts, axis=1, keepdims=True)
        shares = tf.math.divide_no_nan(counts, total) if self.fault != "nan_when_empty" else counts / total
        logits = shares @ self.weights
        if self.fault == "slow":
            start = tf.eye(512) + 0.0 * tf.reduce_sum(logits)  # of the input, or it would be computed once and for all
            turned = tf.while_loop(lambda i, _: i < 300, lambda i, m: (i + 1, m @ start), (0, start))[1]
            logits += 0.0 * tf.reduce_sum(turned)
        return tf.sigmoid(logits) if self.multilabel else tf.nn.softmax(logits)

    def outputs(self, texts, pairs=None, scale: float = 1.0) -> dict[str, tf.Tensor]:
        """What every signature answers."""
        probabilities = self.probabilities(texts, pairs) * scale
        classes = tf.tile(tf.constant([CLASSES]), [tf.shape(texts)[0], 1])
        if self.multilabel:
            decision = {"labels": tf.cast(probabilities >= 0.5, tf.int64)}
        else:
            decision = {"label": tf.gather(tf.constant(CLASSES), tf.argmax(probabilities, axis=1))}
        return {"probabilities": probabilities, "classes": classes, **decision}

    def export(self, path: Path) -> Path:
        """Writes the SavedModel."""
        text = tf.TensorSpec([None], tf.string, "text")
        pair = tf.TensorSpec([None], tf.string, "text_pair")
        scale = 0.9995 if self.fault == "differs" else 1.0
        if self.pairs:
            serve = tf.function(lambda text, text_pair: self.outputs(text, text_pair, scale), autograph=False)
            concrete = serve.get_concrete_function(text, pair)
        else:
            concrete = tf.function(lambda text: self.outputs(text, None, scale), autograph=False).get_concrete_function(
                text
            )

        def from_examples(examples):
            names = ["text", "text_pair"] if self.pairs else ["text"]
            parsed = tf.io.parse_example(examples, {name: tf.io.FixedLenFeature([], tf.string, "") for name in names})
            scale = 0.9995 if self.fault == "examples_differ" else 1.0
            return self.outputs(parsed["text"], parsed.get("text_pair"), scale)

        examples = tf.function(from_examples, autograph=False).get_concrete_function(
            tf.TensorSpec([None], tf.string, "examples")
        )
        classify = tf.function(
            lambda inputs: {
                "classes": from_examples(inputs)["classes"],
                "scores": from_examples(inputs)["probabilities"],
            },
            autograph=False,
        ).get_concrete_function(tf.TensorSpec([None], tf.string, "inputs"))
        signatures = {"serving_default": concrete, "serialized_examples": examples, "classify": classify}
        tf.saved_model.save(self, str(path), signatures=signatures)
        return path
