"""Whether independent steps gain by running side by side: python tests/benchmarks/parallel_steps.py [SPANS] [ROWS]

The steps that do not wait for each other are the ingests of a window's spans. Runs them, cold, one after the other as
`pipeline/local.py` does, then two at a time in threads and in forked processes, each in a pipeline root of its own.
"""

import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import local
from pipeline.config import load_config
from pipeline.graph import create_pipeline

DATA = Path(__file__).parents[2] / "pipeline" / "data" / "pmc_rct_sections" / "train.csv"
AT_ONCE = 2
TOML = """
task = "multiclass"
labels = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
[data]
input = "rows"
splits = { train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv", test = "span-{SPAN}/test.csv" }
columns = { text = "text", label = "label", id = "id" }
[window]
last = "all"
"""


def make_spans(folder: Path, spans: int, rows: int) -> Path:
    """A configuration with so many spans, of so many rows in train and a tenth of that in dev and test each."""
    with DATA.open(encoding="utf-8", newline="") as file:
        source = list(csv.DictReader(file))
    for number in range(spans):
        span = folder / "rows" / f"span-{number}"
        span.mkdir(parents=True)
        for split, count in (("train", rows), ("dev", rows // 10), ("test", rows // 10)):
            with (span / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(source[0]))
                writer.writeheader()
                writer.writerows(source[(number * rows + i) % len(source)] for i in range(count))
    config = folder / "c.toml"
    config.write_text(TOML)
    return config


Launch = Callable[[object], None]


def one_after_the_other(launch: Launch, nodes: list) -> None:
    for node in nodes:
        launch(node)


def threads(launch: Launch, nodes: list) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(launch, nodes))


def processes(launch: Launch, nodes: list) -> None:
    running = 0
    for node in nodes:
        if running == AT_ONCE:
            assert os.wait()[1] == 0
            running -= 1
        if os.fork() == 0:
            status = 1
            try:
                launch(node)
                status = 0
            finally:
                os._exit(status)
        running += 1
    for _ in range(running):
        assert os.wait()[1] == 0


def main() -> None:
    spans = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    with tempfile.TemporaryDirectory() as name:
        config_file = make_spans(Path(name), spans, rows)
        for ways in (one_after_the_other, processes, threads):
            config = load_config(config_file, [f"paths.root={name}/{ways.__name__}"])
            config.root.mkdir()
            ir, deployment, connection = local.compile_run(create_pipeline(config, {}), "benchmark")
            nodes = [node for node in ir.nodes if local.step_id(node).startswith("examples_")]

            def launch(node: object, graph: tuple = (ir, deployment, connection)) -> None:
                local.launch(*graph, node, lambda *_: None, local.Result())

            began = time.monotonic()
            try:
                ways(launch, nodes)
                took = f"{time.monotonic() - began:6.1f} s"
            except Exception as error:
                took = f"failed ({error})"
            print(f"{ways.__name__:<20} {took}   {spans} spans of {rows} rows, {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    main()
