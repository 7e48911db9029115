"""What a schedule costs: python tests/benchmarks/schedule.py [SPANS] [SECONDS]

Makes that many spans of two small files each in a temporary folder, and prints the processor time of the first look
(every file is read once), of a later one, and of the decision alone. Then `biobert-cnn schedule run` as a process with
nothing to do, on a month of spans and on all of them: its processor time over some looks (one every `schedule.poll_s`,
60 s by default), and its memory.
"""

import datetime as dt
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from process_usage import peak_mib, processor_s

from pipeline.config import load_config
from pipeline.retraining.decision import Observed, Span, decide
from pipeline.retraining.scheduler import Scheduler

TOML = """
task = "binary"
labels = ["no", "yes"]
[data]
input = "rows"
splits = { train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv" }
[evaluation]
split = "eval"
[paths]
root = "@ROOT@"
[schedule]
on_new_span = true
settle_s = 0
first_span = 1000000
"""


def make_spans(folder: Path, count: int) -> Path:
    """A configuration with that many spans, all of which were there before."""
    for number in range(count):
        span = folder / "rows" / f"span-{number}"
        span.mkdir(parents=True)
        for split in ("train", "dev"):
            (span / f"{split}.csv").write_text(f"text,label\n{number},yes\n")
    config = folder / "c.toml"
    config.write_text(TOML.replace("@ROOT@", f"{folder}/root"))
    return config


def looks(config_file: Path, count: int) -> None:
    scheduler = Scheduler(load_config(config_file), lambda request, stop, lock: {"status": "pushed", "version": 1})
    for what in ("first look", "later look", "later look"):
        began = time.process_time()
        scheduler.look()
        print(f"{what:<12} {time.process_time() - began:6.2f} s   {count} spans, {2 * count} files")


def decision(config_file: Path, count: int) -> None:
    config = load_config(config_file)
    now = dt.datetime.now(dt.UTC)
    spans = tuple(Span(number, None, f"{number:064d}", now) for number in range(count))
    for what, old in (("the newest of them new", count - 1), ("all of them new", 0)):
        known = spans[:old]
        handled = frozenset(span.trigger for span in known)
        observed = Observed(spans=spans, handled=handled, newest_handled=known[-1].number if known else None)
        began = time.process_time()
        assert decide(now, config.schedule, config.window, observed).run
        print(f"{'decision':<12} {time.process_time() - began:6.2f} s   {count} spans, {what}")


def idle(config_file: Path, count: int, seconds: float) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "schedule", "run", str(config_file),
               "--set", f"paths.root={config_file.parent}/idle"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("waits: nothing is due")
        before, began = processor_s(process.pid), time.monotonic()
        time.sleep(seconds)
        used, wall = processor_s(process.pid) - before, time.monotonic() - began
        memory = peak_mib(process.pid)
        print(
            f"{'idle':<12} {used:6.2f} s of {wall:.0f} s, {used / wall:.2%}   {count} spans; {memory:.0f} MiB at most"
        )
        process.terminate()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 150.0
    for spans in (30, count):
        with tempfile.TemporaryDirectory() as name:
            config_file = make_spans(Path(name), spans)
            if spans == count:
                looks(config_file, spans)
                decision(config_file, spans)
            idle(config_file, spans, seconds)


if __name__ == "__main__":
    main()
