"""What it is worth that Beam remembers signatures and options (components/beam_memo.py).

    python tests/benchmarks/beam_memo.py

TFDV's statistics of three small splits, built and run by Beam in this process, with and without, in turns; medians of
the processor's seconds and their ratio.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import apache_beam as beam
import pyarrow as pa
import tensorflow_data_validation as tfdv

from components import beam_memo

SPLITS, ROWS, REPEATS = ("train", "eval", "test"), 200, 5


def run() -> float:
    """Seconds of the processor for one pipeline."""
    labels = [[b"METHODS"] if number % 3 else [b"RESULTS"] for number in range(ROWS)]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(labels), pa.array([[float(n)] for n in range(ROWS)])], ["label", "tokens"]
    )
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder, beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        for split in SPLITS:
            _ = (
                pipeline
                | f"Rows[{split}]" >> beam.Create([batch])
                | f"Statistics[{split}]" >> tfdv.GenerateStatistics(tfdv.StatsOptions())
                | f"Write[{split}]" >> tfdv.WriteStatisticsToBinaryFile(f"{folder}/{split}.pb")
            )
    return time.process_time() - started


def main() -> None:
    found: dict[str, list[float]] = {"as Beam is": [], "remembered": []}
    run()  # what is imported at the first use
    for _ in range(REPEATS):
        beam_memo.forget()
        found["as Beam is"].append(run())
        beam_memo.remember()
        found["remembered"].append(run())
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    for name, seconds in medians.items():
        print(f"{name:<12}{seconds:>6.2f} s")
    print(f"ratio {medians['as Beam is'] / medians['remembered']:.2f}")


if __name__ == "__main__":
    main()
