"""What the shipped configurations reach beside TF-IDF + SVM, as a table in Markdown.

    python tests/benchmarks/quality.py                              # every configuration whose data is there
    python tests/benchmarks/quality.py default minilm_gad           # some of them, by name

Each row is one run of the pipeline, all its figures from the run's own record: on the split `test`, with 95 % bootstrap
intervals, the differences paired. A run that is already there (`runs/`), of the same data, configuration and code, is
read instead of repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "pipeline" / "configs"
TABLE = (
    "default", "pmc_rct_context", "hoc", "gad", "nicta_piboso", "ncbi_disease",
    "minilm_pmc_rct", "minilm_hoc", "minilm_gad", "minilm_nicta_piboso",
)  # fmt: skip


def run(name: str) -> dict[str, Any] | None:
    """The record of a configuration's run; None where it cannot run here."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(CONFIGS / f"{name}.toml"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 2:  # the configuration, or what it names: its data or weights are not there
        print(f"{name}: {done.stderr.strip()}", file=sys.stderr)
        return None
    if done.returncode not in (0, 3):  # 3: a gate does not hold, which is a result
        raise SystemExit(f"{name}: {done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def interval(figure: dict[str, float], name: str = "value") -> str:
    return f"{figure[name]:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def difference(figure: dict[str, float], name: str = "difference") -> str:
    return f"{figure[name]:+.3f} ({figure['low']:+.3f} to {figure['high']:+.3f})"


def table_rows(name: str, record: dict[str, Any]) -> list[str]:
    """A line a metric: the model, the SVM of the same run, and the difference."""
    metrics, baseline, paired = record["metrics"], record["baseline"], record["paired"]
    many = "documents" in record and record["documents"]
    lines = [
        f"| `{name}` | {metric} | {interval(metrics[metric])} | {baseline[metric]:.3f} | {difference(paired[metric])} |"
        for metric in ("macro_f1", "micro_f1" if many else "accuracy")
    ]
    if many:
        figures = (
            f"{interval(many['model'])} | {many['baseline']['value']:.3f} | {difference(many['difference'], 'value')}"
        )
        lines.append(f"| `{name}` | F1 per abstract | {figures} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=TABLE, help="configurations; default: those of the README's table")
    arguments = parser.parse_args()
    print("| configuration | metric | model | SVM | difference |\n| --- | --- | --- | --- | --- |")
    for name in arguments.names:
        if record := run(name):
            print("\n".join(table_rows(name, record)), flush=True)


if __name__ == "__main__":
    main()
