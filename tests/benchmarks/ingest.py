"""How ingest grows with the data: rows per second and peak memory at two sizes, and their ratios.

    python tests/benchmarks/ingest.py                # 160,000 and 1,600,000 rows, in this process
    python tests/benchmarks/ingest.py --rows 100000 --workers 2 --neighbours

The shipped training data is repeated, each time with ids of its own. Each size runs in a process of its own;
memory is its peak beyond what it held after the imports (Linux only: /proc).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

from process_usage import descendants, peak_mib

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "pipeline" / "data" / "pmc_rct_sections"
LABELS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
MIB = 1 << 20


def repeat_data(target: Path, rows: int) -> None:
    """Writes train.csv of `rows` rows, and the shipped dev.csv and test.csv, to `target`."""
    with open(DATA / "train.csv", encoding="utf-8", newline="") as stream:
        header, *shipped = csv.reader(stream)
    index = header.index("id")
    with open(target / "train.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for number in range(rows):
            turn, at = divmod(number, len(shipped))
            row = list(shipped[at])
            row[index] = f"{turn}-{row[index]}"
            writer.writerow(row)
    for name in ("dev.csv", "test.csv"):
        (target / name).write_bytes((DATA / name).read_bytes())


def measure(folder: str, output: str, workers: int, neighbours: bool) -> dict[str, float]:
    """Ingests `folder` in a new process; returns rows, seconds, and MiB beyond the imports, of the process itself
    and of the greatest of its workers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_ingest, (folder, output, workers, neighbours))


def _ingest(folder: str, output: str, workers: int, neighbours: bool) -> dict[str, float]:
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts

    from components.config import Columns, DataConfig
    from components.examples.component import TextExampleGen, TextExampleGenExecutor

    data = DataConfig(
        input=Path(folder),
        splits={"train": "train.csv", "eval": "dev.csv", "test": "test.csv"},
        columns=Columns(id="id"),
        neighbours=neighbours,
    )
    component = TextExampleGen(folder, data, "multiclass", LABELS, "label")
    # The image keeps TFX from packing itself for remote workers, which takes seconds.
    arguments = ["--runner=FnApiRunner", "--sdk_container_image=unused"]
    if workers:
        arguments += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    artifact = standard_artifacts.Examples()
    artifact.uri = output
    Path(output).mkdir(parents=True)
    executor = TextExampleGenExecutor(BaseBeamExecutor.Context(beam_pipeline_args=arguments))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: importing peaks above what it leaves
    imports = peak_mib()
    workers_peak = _WorkersPeak()
    start = time.perf_counter()
    with workers_peak:
        executor.Do({}, {"examples": [artifact]}, component.exec_properties)
    seconds = time.perf_counter() - start
    report = json.loads((Path(output) / "ingest_report.json").read_bytes())
    return {
        "rows": report["rows"],
        "seconds": seconds,
        "imports_mib": imports,
        "mib": peak_mib() - imports,
        "worker_mib": workers_peak.mib,
    }


class _WorkersPeak(threading.Thread):
    """Watches the processes that this one starts; `mib` is the greatest peak among them.

    Their resource usage will not do: it counts the moment after the fork, when a child is as large as its parent.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.mib = 0.0
        self._end = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        while not self._end.wait(0.2):
            for process in descendants():
                with contextlib.suppress(OSError, IndexError):  # it may have ended
                    if b"sdk_worker_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                        self.mib = max(self.mib, peak_mib(process))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_600_000, help="rows of the larger size; the smaller is a tenth")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0: all in one process")
    parser.add_argument("--neighbours", action="store_true", help="text_pair from the neighbouring sentences")
    options = parser.parse_args()
    results = []
    for rows in (options.rows // 10, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            repeat_data(Path(folder), rows)
            size = (Path(folder) / "train.csv").stat().st_size / MIB
            result = measure(folder, f"{folder}/out/examples/1", options.workers, options.neighbours)
        results.append(result)
        print(
            f"{result['rows']:>9,} rows ({size:.0f} MiB): {result['seconds']:.1f} s, "
            f"{result['rows'] / result['seconds']:,.0f} rows/s, {result['mib']:.0f} MiB beyond the "
            f"{result['imports_mib']:.0f} of the imports"
            + (f", largest worker {result['worker_mib']:.0f} MiB" if options.workers else ""),
            flush=True,
        )
    small, large = results
    print(
        f"{large['rows'] / small['rows']:.1f} times the rows: {large['seconds'] / small['seconds']:.2f} times the "
        f"seconds, {(large['imports_mib'] + large['mib']) / (small['imports_mib'] + small['mib']):.2f} times the memory"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
