"""What is sent to the server: real texts that the trainer answered too, texts meant to break it, and warm-up texts."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2
from tfx.dsl.io import fileio
from tfx.utils import io_utils

from components.transform.keys import text_key

# Any of these must get an answer. The names stand in reports; the texts are nobody's.
HOSTILE = {
    "an empty text": b"",
    "white space": b" \t\r\n\xc2\xa0",
    "a text of 1,000,000 characters": b"protein " * 125_000,
    "a word of 100,000 characters": b"x" * 100_000,
    "invalid UTF-8": b"\xff\xfe\xc3\x28 dose",
    "control characters": bytes(range(1, 32)) + b"\x7f",
    "a NUL character": b"before\x00after",
    "special tokens written out": b"[CLS] [SEP] [PAD] [MASK] [UNK]",
}
# Said by nobody of anybody: warm-up requests are copied to every server, so no text of the data may stand in them.
_FILLER = (
    "The primary outcome was the change in mean systolic blood pressure from baseline to week twelve, measured by "
    "blinded assessors in both treatment groups and analysed by intention to treat. "
)
_BATCH_SIZES = (1, 8, 2, 16, 4, 32)


@dataclass(frozen=True)
class Sample:
    """Raw texts and what the trainer's own model said of them.

    Attributes:
      texts: bytes, n of them.
      pairs: bytes, n of them; None where the data has no second segment.
      probabilities: float64 [n, classes].
      tolerance: what the trainer allows a model of low precision; None in float32.
    """

    texts: list[bytes]
    pairs: list[bytes] | None
    probabilities: np.ndarray
    tolerance: float | None = None

    def __repr__(self) -> str:  # texts must not reach a log by accident
        return f"Sample(texts={len(self.texts)}, pairs={self.pairs is not None})"


def find_sample(check_file: str, split_uri: str, count: int) -> tuple[Sample, int]:
    """Looks up the raw texts of the examples that the trainer noted in check.json.

    Args:
      check_file: `keys` and `probabilities`, by the trainer, and for a low precision `tolerance`.
      split_uri: folder of the raw examples' split.
      count: how many to look up, in the trainer's order.

    Returns:
      The sample, and how many of the wanted keys the split does not hold.
    """
    with fileio.open(check_file, "r") as file:
        noted = json.loads(file.read())
    wanted = dict(zip(noted["keys"][:count], noted["probabilities"][:count], strict=True))
    found: dict[int, tuple[bytes, bytes]] = {}
    has_pairs = False
    for keys, texts, pairs in _read(split_uri):
        has_pairs = has_pairs or pairs is not None
        for row in np.nonzero(np.isin(keys, list(wanted)))[0]:
            found.setdefault(int(keys[row]), (texts[row], b"" if pairs is None else pairs[row]))
        if len(found) == len(wanted):
            break
    order = [key for key in wanted if key in found]
    sample = Sample(
        texts=[found[key][0] for key in order],
        pairs=[found[key][1] for key in order] if has_pairs else None,
        probabilities=np.asarray([wanted[key] for key in order], np.float64),
        tolerance=noted.get("tolerance"),
    )
    return sample, len(wanted) - len(order)


def _read(split_uri: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Batches of keys int64 [n], texts bytes [n] and, where there are any, pairs bytes [n]."""
    files = sorted(str(file) for file in fileio.glob(io_utils.all_files_pattern(split_uri)))
    files = [file for file in files if not os.path.basename(file).startswith(".")]
    compression = "GZIP" if files and files[0].endswith(".gz") else ""
    features = {
        "text": tf.io.FixedLenFeature([], tf.string, ""),
        "text_pair": tf.io.VarLenFeature(tf.string),
    }
    for batch in tf.data.TFRecordDataset(files, compression).batch(1024):
        parsed = tf.io.parse_example(batch, features)
        pairs = None
        if parsed["text_pair"].values.shape[0]:
            pairs = tf.sparse.to_dense(parsed["text_pair"], "")[:, 0]
        yield (
            text_key(parsed["text"], pairs).numpy(),
            parsed["text"].numpy(),
            None if pairs is None else pairs.numpy(),
        )


def predict_request(
    model_name: str, texts: Sequence[bytes], pairs: Sequence[bytes] | None, signature: str = "serving_default"
) -> predict_pb2.PredictRequest:
    """A Predict request with `texts` (and `pairs`) as string tensors [batch]."""
    request = predict_pb2.PredictRequest(model_spec=_spec(model_name, signature))
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(list(texts), tf.string))
    if pairs is not None:
        request.inputs["text_pair"].CopyFrom(tf.make_tensor_proto(list(pairs), tf.string))
    return request


def examples_request(
    model_name: str, texts: Sequence[bytes], pairs: Sequence[bytes] | None
) -> predict_pb2.PredictRequest:
    """A Predict request on `serialized_examples`, with the texts (and pairs) as tf.Examples."""
    request = predict_pb2.PredictRequest(model_spec=_spec(model_name, "serialized_examples"))
    rows = [example.SerializeToString() for example in _examples(texts, pairs)]
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(rows, tf.string))
    return request


def classify_request(
    model_name: str, texts: Sequence[bytes], pairs: Sequence[bytes] | None
) -> classification_pb2.ClassificationRequest:
    """A Classify request on `classify`, with the texts (and pairs) as tf.Examples."""
    request = classification_pb2.ClassificationRequest(model_spec=_spec(model_name, "classify"))
    request.input.example_list.examples.extend(_examples(texts, pairs))
    return request


def write_warmup(path: str, model_name: str, sample: Sample, requests: int, signatures: Collection[str]) -> None:
    """Writes `assets.extra/tf_serving_warmup_requests`: filler of the real texts' lengths, in several batch sizes, and
    one request for each further signature that clients ask: the first call of each is slow.

    Format: TFRecord of PredictionLog, https://www.tensorflow.org/tfx/serving/saved_model_warmup.

    Args:
      path: the file.
      model_name: as it will be served.
      sample: its texts' lengths are taken, never the texts.
      requests: how many for `serving_default`.
      signatures: the model's.
    """
    words = [max(len(text.split()), 1) for text in sample.texts] or [20]
    fileio.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:

        def write(**log: Message) -> None:
            writer.write(prediction_log_pb2.PredictionLog(**log).SerializeToString())

        position = 0
        for number in range(requests):
            size = _BATCH_SIZES[number % len(_BATCH_SIZES)]
            lengths = [words[(position + row) % len(words)] for row in range(size)]
            position += size
            texts = [_filler(length) for length in lengths]
            request = predict_request(model_name, texts, None if sample.pairs is None else texts)
            write(predict_log=prediction_log_pb2.PredictLog(request=request))
        texts = [_filler(words[0])]
        asked = model_name, texts, None if sample.pairs is None else texts
        if "explain" in signatures:
            write(predict_log=prediction_log_pb2.PredictLog(request=predict_request(*asked, "explain")))
        if "serialized_examples" in signatures:
            write(predict_log=prediction_log_pb2.PredictLog(request=examples_request(*asked)))
        if "classify" in signatures:
            write(classify_log=prediction_log_pb2.ClassifyLog(request=classify_request(*asked)))


def _spec(model_name: str, signature: str) -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(name=model_name, signature_name=signature)


def _examples(texts: Sequence[bytes], pairs: Sequence[bytes] | None) -> Iterator[tf.train.Example]:
    for row, text in enumerate(texts):
        example = tf.train.Example()
        example.features.feature["text"].bytes_list.value.append(text)
        if pairs is not None:
            example.features.feature["text_pair"].bytes_list.value.append(pairs[row])
        yield example


def _filler(words: int) -> bytes:
    repeats = words // len(_FILLER.split()) + 1
    return " ".join((_FILLER * repeats).split()[:words]).encode()
