"""What a newcomer waits for: the set-up, the main job cold and again, and the commands that import nothing heavy.

    python tests/benchmarks/startup.py                 # in a fresh clone of this checkout; some five minutes
    python tests/benchmarks/startup.py --here          # in this checkout, which has a finished run of default.toml

Prints the wall time of each as one JSON object a line with the bound that it is held to; of quick ones the median of
five. Exit status 1 if one of them does not hold. What is not committed is not in the clone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "pipeline/configs/default.toml"
PROGRAM = ".venv/bin/biobert-cnn"


def measure(what: str, command: list[str], folder: Path, bound_s: float | None, times: int = 1) -> bool:
    """Runs a command and prints the median of its times; whether it is within the bound."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        if done.returncode:
            raise SystemExit(f"{what}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    found = statistics.median(seconds)
    holds = bound_s is None or found <= bound_s
    print(json.dumps({"what": what, "seconds": round(found, 2), "bound_s": bound_s, "holds": holds}), flush=True)
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="the quick ones alone, in this checkout")
    arguments = parser.parse_args()
    held = []
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = ROOT
        if not arguments.here:
            folder = Path(name) / "checkout"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
            held.append(measure("make setup, cold", ["make", "setup"], folder, None))
            held.append(measure("make run, set up, cold", ["make", "run"], folder, 360.0))
        held.append(measure("make setup, again", ["make", "setup"], folder, 2.0, times=5))
        held.append(measure("run, nothing changed", [PROGRAM, "run", CONFIG], folder, 3.0, times=5))
        held.append(measure("--help", [PROGRAM, "--help"], folder, 1.0, times=5))
        held.append(measure("config check", [PROGRAM, "config", "check", CONFIG], folder, 1.0, times=5))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
