"""What a look of the schedule costs: python tests/benchmarks/schedule.py [SPANS]

Makes that many spans of two small files each in a temporary folder, and prints the processor time of the first look
(every file is read once), of a later one, and of the decision alone; and the memory of the process.
"""

import datetime as dt
import resource
import sys
import tempfile
import time
from pathlib import Path

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
[schedule]
on_new_span = true
settle_s = 0
"""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "c.toml").write_text(TOML)
        for number in range(count):
            span = folder / "rows" / f"span-{number}"
            span.mkdir(parents=True)
            for split in ("train", "dev"):
                (span / f"{split}.csv").write_text(f"text,label\n{number},yes\n")
        config = load_config(folder / "c.toml", [f"paths.root={folder}/root"])
        scheduler = Scheduler(config, lambda request, stop, lock: {"status": "pushed", "version": 1})
        for what in ("first look", "later look", "later look"):
            began = time.process_time()
            scheduler.look()
            print(f"{what:<12} {time.process_time() - began:6.2f} s   {count} spans, {2 * count} files")
    now = dt.datetime.now(dt.UTC)
    spans = tuple(Span(number, None, f"{number:064d}", now) for number in range(count))
    observed = Observed(spans=spans, handled=frozenset(span.trigger for span in spans[:-1]), newest_handled=count - 2)
    began = time.process_time()
    decide(now, config.schedule.model_copy(update={"settle_s": 0.0}), config.window, observed)
    print(f"{'decision':<12} {time.process_time() - began:6.2f} s")
    print(f"{'memory':<12} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MiB at most")


if __name__ == "__main__":
    main()
