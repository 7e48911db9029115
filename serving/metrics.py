"""Counters, gauges and histograms, and the page that Prometheus reads.

Names, labels and buckets are TensorFlow Serving's (servables/tensorflow/util.cc, batching/batching_session.cc and
others; util/prometheus_exporter.cc): a path such as `/tensorflow/serving/request_count` becomes
`:tensorflow:serving:request_count`. Batching's metrics have the model's name as their only label. Client libraries
append `_total` to counters, which dashboards made for TensorFlow Serving do not expect; hence this small registry.
"""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Sequence

# Scale 10 µs, growth 1.8, 33 buckets: up to some 20 minutes.
LATENCY_BUCKETS = [10 * 1.8**i for i in range(33)]
QUEUING_BUCKETS = [100 * 1.2**i for i in range(52)]  # up to about a second
EXAMPLES_BUCKETS = [2.0**i for i in range(15)]
BATCH_BUCKETS = [2.0**i for i in range(14)]


class _Metric:
    kind = ""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]):
        self.name = re.sub(r"[^a-zA-Z0-9_]", ":", name)
        self.help = help_text
        self.labels = tuple(labels)
        self._lock = threading.Lock()

    def _label_text(self, values: Sequence[str], extra: str = "") -> str:
        pairs = [
            '{}="{}"'.format(n, str(v).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
            for n, v in zip(self.labels, values, strict=True)
        ]
        return "{" + ",".join([*pairs, *([extra] if extra else [])]) + "}"

    def lines(self) -> list[str]:
        raise AssertionError("abstract")


class Counter(_Metric):
    """A sum that only grows, one for each combination of label values."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()):
        super().__init__(name, help_text, labels)
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + by

    def value(self, *labels: str) -> float:
        with self._lock:
            return self._values.get(labels, 0)

    def total(self) -> float:
        with self._lock:
            return sum(self._values.values())

    def lines(self) -> list[str]:
        with self._lock:
            items = sorted(self._values.items())
        return [f"{self.name}{self._label_text(k)} {v:.17g}" for k, v in items]


class Gauge(Counter):
    """A number that goes up and down."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        with self._lock:
            self._values[labels] = value

    def remove(self, *labels: str) -> None:
        with self._lock:
            self._values.pop(labels, None)


class Histogram(_Metric):
    """Counts by bucket, the sum and the number; `bounds` are the buckets' upper bounds, ascending."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, labels: Sequence[str], bounds: Sequence[float]):
        super().__init__(name, help_text, labels)
        self._bounds = list(bounds)
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            cell = self._cells.get(labels)
            if cell is None:
                cell = self._cells[labels] = ([0] * (len(self._bounds) + 1), [0.0])
            cell[0][bisect.bisect_left(self._bounds, value)] += 1
            cell[1][0] += value

    def count(self, *labels: str) -> int:
        with self._lock:
            cell = self._cells.get(labels)
            return sum(cell[0]) if cell else 0

    def lines(self) -> list[str]:
        with self._lock:
            cells = [(k, list(c[0]), c[1][0]) for k, c in sorted(self._cells.items())]
        out = []
        for labels, counts, total in cells:
            running = 0
            for bound, count in zip([f"{b:g}" for b in self._bounds] + ["+Inf"], counts, strict=True):
                running += count
                le = f'le="{bound}"'
                out.append(f"{self.name}_bucket{self._label_text(labels, le)} {running}")
            out.append(f"{self.name}_sum{self._label_text(labels)} {total:.17g}")
            out.append(f"{self.name}_count{self._label_text(labels)} {running}")
        return out


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        prefix = "/tensorflow/serving/"
        by_model = ["model_name", "API", "entrypoint"]
        self.request_count = Counter(
            prefix + "request_count", "The total number of requests.", ["model_name", "status"]
        )
        self.request_latency = Histogram(
            prefix + "request_latency", "Wall time of a request, microseconds.", by_model, LATENCY_BUCKETS
        )
        self.runtime_latency = Histogram(
            prefix + "runtime_latency", "Wall time in the TensorFlow runtime, microseconds.",
            ["model_name", "API", "runtime"], LATENCY_BUCKETS,
        )  # fmt: skip
        self.request_example_counts = Histogram(
            prefix + "request_example_counts", "Examples in a request.", ["model"], EXAMPLES_BUCKETS
        )
        self.request_example_count_total = Counter(
            prefix + "request_example_count_total", "The total number of examples.", ["model"]
        )
        self.request_log_count = Counter(
            prefix + "request_log_count", "Requests logged, by outcome.", ["model_name", "status_code"]
        )
        self.warmup_latency = Histogram(
            prefix + "model_warmup_latency", "Wall time of a warm-up, microseconds.",
            ["model_path", "status"], LATENCY_BUCKETS,
        )  # fmt: skip
        self.warmup_records_read = Counter(
            prefix + "model_warmup_records_read", "Requests replayed by warm-ups.", ["model_path", "status"]
        )
        session = prefix + "batching_session/"
        self.queuing_latency = Histogram(
            session + "queuing_latency", "Time a task waits for its batch, microseconds.",
            ["model_name"], QUEUING_BUCKETS,
        )  # fmt: skip
        self.input_batch_size = Histogram(
            session + "input_batch_size", "Rows in a request.", ["model_name"], BATCH_BUCKETS
        )
        self.processed_batch_size = Histogram(
            session + "processed_batch_size", "Rows in a batch, padding rows included.",
            ["model_name"], BATCH_BUCKETS,
        )  # fmt: skip
        self.padding_size = Histogram(
            session + "padding_size", "Padding rows in a batch.", ["model_name"], BATCH_BUCKETS
        )
        self.wrapped_run_count = Counter(session + "wrapped_run_count", "Batches computed.", ["model_name"])
        own = "/biobert_cnn/serving/"
        self.tokenizer_latency = Histogram(
            own + "tokenizer_latency", "Time to count the tokens of requests that came together, microseconds.",
            ["model_name"], LATENCY_BUCKETS,
        )  # fmt: skip
        self.tokens = Counter(own + "tokens", "Tokens in batches, without padding.", ["model_name"])
        self.padded_tokens = Counter(
            own + "padded_tokens", "Tokens in batches, padded to the longest text of each.", ["model_name"]
        )
        self.in_flight = Gauge(own + "requests_in_flight", "Inference requests being answered.", ["entrypoint"])
        self.connections = Gauge(own + "rest_connections", "Open REST connections.", [])
        self.model_ready = Gauge(
            own + "model_version_available", "1 for each version that answers.", ["model_name", "version"]
        )
        self.ready = Gauge(own + "ready", "1 once every configured model answers.", [])

    def page(self) -> str:
        """The text exposition format, 0.0.4."""
        lines = []
        for metric in vars(self).values():
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.lines())
        return "\n".join(lines) + "\n"

    def total(self, name: str) -> float:
        """The sum over all labels of the counter with TensorFlow Serving's name `/tensorflow/serving/…`; 0 if none."""
        wanted = re.sub(r"[^a-zA-Z0-9_]", ":", name)
        for metric in vars(self).values():
            if metric.name == wanted and isinstance(metric, Counter):
                return metric.total()
        return 0.0
