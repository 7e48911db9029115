"""Where the time of an exported model goes, by TensorFlow operation.

    python tests/benchmarks/operations.py runs/default/serving/biobert_cnn/VERSION --batches 1 8 32
    python tests/benchmarks/inference.py --keep FOLDER --no-peers && python tests/benchmarks/operations.py FOLDER/int8

The texts are shipped sentences, or abstracts (`--abstracts`), as they come, one batch at least. For each batch size:
texts/s without a trace (median of five passes), and from traced passes each operation's share of the time in
operations, how many a batch has, and the mean of one. Operations run side by side on the cores, so that their times
may add up to more than the wall's.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the server
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import tensorflow as tf  # noqa: E402
import tensorflow_text  # noqa: E402, F401
from inference import read_texts  # noqa: E402
from tensorflow.core.protobuf import config_pb2  # noqa: E402

# They hold other operations, whose time is counted already.
OUTER = {"If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile"}


def profile(model: str, batch: int, operations: int, abstracts: bool, most: int) -> None:
    """Prints the table of one batch size."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], model).signature_def["serving_default"]
        chosen = read_texts()[abstracts][: max(most, batch)]
        feeds = []
        for first in range(0, len(chosen), batch):
            texts = chosen[first : first + batch]
            values = {"text": texts, "text_pair": [""] * len(texts)}
            feeds.append({info.name: values[name] for name, info in signature.inputs.items()})
        fetches = [info.name for info in signature.outputs.values()]

        def run_all() -> float:
            started = time.perf_counter()
            for feed in feeds:
                session.run(fetches, feed)
            return time.perf_counter() - started

        run_all()  # compiles, packs and allocates
        seconds = statistics.median(run_all() for _ in range(5))
        spent: collections.Counter[str] = collections.Counter()
        count: collections.Counter[str] = collections.Counter()
        for feed in feeds:
            metadata = config_pb2.RunMetadata()
            options = config_pb2.RunOptions(trace_level=config_pb2.RunOptions.FULL_TRACE)
            session.run(fetches, feed, options=options, run_metadata=metadata)
            for device in metadata.step_stats.dev_stats:
                for node in device.node_stats:
                    kind = re.search(r" = (\w+)\(", node.timeline_label)
                    name = kind.group(1) if kind else node.node_name
                    if name not in OUTER:
                        spent[name] += node.op_end_rel_micros - node.op_start_rel_micros
                        count[name] += 1
    total = sum(spent.values())
    print(
        f"\nbatch {batch}: {len(chosen) / seconds:.1f} texts/s, {seconds / len(feeds) * 1e3:.1f} ms a batch, "
        f"{total / len(feeds) / 1e3:.1f} ms in operations"
    )
    for name, microseconds in spent.most_common(operations):
        print(
            f"  {name:<32}{microseconds / total:>7.1%}{count[name] / len(feeds):>7.0f} a batch"
            f"{microseconds / count[name]:>9.0f} µs each"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the SavedModel's folder")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--operations", type=int, default=12, help="how many to print, the longest first")
    parser.add_argument("--abstracts", action="store_true", help="long texts")
    parser.add_argument("--texts", type=int, default=64)
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")
    for batch in arguments.batches:
        profile(arguments.model, batch, arguments.operations, arguments.abstracts, arguments.texts)


if __name__ == "__main__":
    main()
