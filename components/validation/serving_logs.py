"""Statistics of what the model server was asked, from its request log.

The log is TFRecords of `tensorflow_serving.apis.PredictionLog`, as TensorFlow Serving's and this project's own
server write; texts are measured in the worker and go no further.
"""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow_data_validation as tfdv

from components.statistics.derive import TextMeasurer


class MeasureRequests(beam.DoFn):
    """`PredictionLog` bytes, in lists → one `pa.RecordBatch` of the texts' measures."""

    def __init__(self, vocab_file: str, lower_case: bool) -> None:
        self._vocab_file, self._lower_case = vocab_file, lower_case

    def setup(self) -> None:
        self._measurer = TextMeasurer(self._vocab_file, self._lower_case)

    def process(self, records: list[bytes]) -> Iterable[pa.RecordBatch]:
        texts = [text for record in records for text in request_texts(record)]
        if not texts:
            return
        offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
        columns = {
            name: pa.ListArray.from_arrays(offsets, pa.array(values))
            for name, values in self._measurer.measure(texts).items()
        }
        yield pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def request_texts(record: bytes) -> list[bytes]:
    """The texts of one logged request: the input `text` of Predict."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog.FromString(record)
    if log.WhichOneof("log_type") != "predict_log" or "text" not in log.predict_log.request.inputs:
        return []
    return [bytes(text) for text in tf.make_ndarray(log.predict_log.request.inputs["text"]).ravel()]


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
