"""Statistics of what the model server was asked, from its request log.

The log is TFRecords of `tensorflow_serving.apis.PredictionLog`, as TensorFlow Serving's and this project's own
server write; texts are measured in the worker and go no further.
"""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa
import tensorflow_data_validation as tfdv

from components.statistics.derive import PREFIXES, TextMeasurer, measured_columns


class MeasureRequests(beam.DoFn):
    """`PredictionLog` bytes, in lists → one `pa.RecordBatch` of the texts' measures."""

    def __init__(self, vocab_file: str, lower_case: bool) -> None:
        self._vocab_file, self._lower_case = vocab_file, lower_case

    def setup(self) -> None:
        self._measurer = TextMeasurer(self._vocab_file, self._lower_case)

    def process(self, records: list[bytes]) -> Iterable[pa.RecordBatch]:
        for feature, prefix in PREFIXES.items():
            texts = [text for record in records for text in request_texts(record, feature)]
            if texts:
                columns = measured_columns(texts, self._measurer, prefix)
                yield pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def request_texts(record: bytes, feature: str = "text") -> list[bytes]:
    """The texts of one logged request: an input of Predict, or a feature of each of the tf.Examples it sent."""
    from tensorflow_serving.apis import prediction_log_pb2

    from serving.inference import serialized_examples
    from serving.tensors import to_array  # unlike tf.make_ndarray, it takes whatever a server does

    log = prediction_log_pb2.PredictionLog.FromString(record)
    kind = log.WhichOneof("log_type")
    examples: list[bytes] = []
    if kind == "predict_log":
        inputs = log.predict_log.request.inputs
        if feature in inputs:
            return to_array(inputs[feature]).ravel().tolist()
        if "examples" in inputs:
            examples = to_array(inputs["examples"]).ravel().tolist()
    elif kind in ("classify_log", "regress_log", "multi_inference_log"):
        examples = serialized_examples(getattr(log, kind).request.input)
    return [text for example in examples for text in _example_texts(example, feature)]


def _example_texts(example: bytes, feature: str) -> list[bytes]:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        return list(tf.train.Example.FromString(example).features.feature[feature].bytes_list.value)
    except DecodeError:  # a feature's name that is not UTF-8, which TensorFlow does not look at
        return []


def write_statistics(pipeline: beam.Pipeline, glob: str, vocab_file: str, lower_case: bool, output: str) -> None:
    """Adds to `pipeline` what writes the logs' statistics to the file `output`, binary."""
    _ = (
        pipeline
        | "ReadServingLogs" >> beam.io.ReadFromTFRecord(glob)
        | "Batch" >> beam.BatchElements(min_batch_size=64, max_batch_size=1024)
        | "MeasureRequests" >> beam.ParDo(MeasureRequests(vocab_file, lower_case))
        | "ServingStatistics" >> tfdv.GenerateStatistics()
        | "WriteServingStatistics" >> tfdv.WriteStatisticsToBinaryFile(output)
    )
