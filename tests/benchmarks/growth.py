"""How ingest, statistics and transform grow with the data: rows per second by step, and peak memory.

    python tests/benchmarks/growth.py                              # 160,000, 800,000 and 1,600,000 rows
    python tests/benchmarks/growth.py --rows 40000 160000 --mode in_memory

The shipped training data is repeated, each time with ids of its own, and the pipeline is run up to `transform` in a
process of its own. Memory is the sum of what the process and its workers hold, at its peak (Linux: /proc). The
smallest size is worked on in one process, the larger ones in workers that each hold TensorFlow: ratios are of the last
two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ingest import ROOT, repeat_data
from process_usage import resident_mib

STEPS = ("examples", "statistics", "transform")


def run(rows: int, mode: str, folder: Path) -> dict[str, float]:
    """Runs the pipeline up to `transform` on `rows` rows; returns seconds by step and peak memory."""
    data = folder / "data"
    data.mkdir()
    repeat_data(data, rows)
    command = [
        sys.executable, "-m", "pipeline.cli", "run", str(ROOT / "pipeline" / "configs" / "default.toml"), "--json",
        "--to", "transform", "--set", f"data.input={data}", "--set", f"paths.root={folder / 'root'}",
        "--set", f"beam.mode={mode}",
    ]  # fmt: skip
    peak = 0.0
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT)
        while process.poll() is None:
            peak = max(peak, resident_mib(process.pid))
            time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit(f"the run failed: {(folder / 'err').read_text()[-2000:]}")
    seconds = json.loads((folder / "out").read_text())["seconds"]
    return {**{step: seconds[step] for step in STEPS}, "peak_mib": peak}


def main() -> None:
    """Prints one line a size, and the ratios of the last two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[160_000, 800_000, 1_600_000])
    parser.add_argument("--mode", choices=("auto", "in_memory", "multi_processing"), default="auto")
    arguments = parser.parse_args()
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            result = run(rows, arguments.mode, Path(folder))
        results.append(result)
        rates = "  ".join(f"{step} {result[step]:7.1f} s {rows / result[step]:8.0f} rows/s" for step in STEPS)
        print(f"{rows:>9} rows  {rates}  peak {result['peak_mib']:6.0f} MiB", flush=True)
    if len(results) < 2:
        return
    first, last = results[-2:]
    grown = arguments.rows[-1] / arguments.rows[-2]
    for step in STEPS:
        print(f"{step}: {last[step] / first[step]:.2f} x the time for {grown:.3g} x the rows")
    print(f"memory: {last['peak_mib'] / first['peak_mib']:.2f} x for {grown:.3g} x the rows")


if __name__ == "__main__":
    main()
