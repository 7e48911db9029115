"""Whether independent steps gain by running side by side: python tests/benchmarks/parallel_steps.py [SPANS] [ROWS]

The steps that do not wait for each other are the ingests of a window's spans. Runs them, cold, one after the other as
`pipeline/local.py` does, two at a time in threads, and two at a time in forked processes: in turns, each time in a
pipeline root of its own. The first turn warms up and is not printed.
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
TURNS = 3
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
        took: dict[str, list[str]] = {}
        for turn in range(TURNS + 1):
            for way in (one_after_the_other, threads, processes):
                seconds = timed(way, config_file, f"{name}/{way.__name__}-{turn}")
                if turn:
                    took.setdefault(way.__name__, []).append(f"{seconds:5.1f}")
        print(f"{spans} spans of {rows} rows, {os.cpu_count()} cores, seconds")
        for way_name, seconds in took.items():
            print(f"{way_name:<20} {'  '.join(seconds)}")


def timed(way: Callable[[Launch, list], None], config_file: Path, root: str) -> float:
    """Seconds that the ingests of all spans take."""
    config = load_config(config_file, [f"paths.root={root}"])
    config.root.mkdir()
    graph = local.compile_run(create_pipeline(config, {}), "benchmark")
    nodes = [node for node in graph[0].nodes if local.step_id(node).startswith("examples_")]

    def launch(node: object) -> None:
        local.launch(*graph, node, lambda *_: None, local.Result())

    began = time.monotonic()
    way(launch, nodes)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
