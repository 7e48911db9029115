"""Batches across requests: a queue in front of a session, and threads that empty it.

Parameters and their meaning are TensorFlow Serving's (`batching_parameters.txt`; batching/batching_session.h and
TensorFlow's shared_batch_scheduler.h). Its C++ batcher, which `tf.nondifferentiable_batch_function` wraps, cannot do
what is asked of this one: refuse at once when full, drop a request whose deadline has passed or whose client has
gone, judge a batch by its tokens, and answer the good requests of a batch in which one is bad. The work in Python is
some tens of microseconds a request; the session runs without the interpreter's lock.

    submit ─▶ queue (bounded) ─▶ batch thread: take what goes together ─▶ session ─▶ split
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving import config
from serving.errors import Code, StartError, StatusError, invalid
from serving.loader import NO_CALL, Call, Feeds, Runner
from serving.metrics import Metrics
from serving.protos import BatchingParameters

_log = logging.getLogger(__name__)
# Padding that is accepted to fill a batch: this share of its real tokens, or any at all below so many.
_WASTE = 1.25
_FREE_TOKENS = 512
# Failures that the other requests of a batch share anyway.
_COMMON = (Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)


@dataclass(frozen=True)
class BatchingOptions:
    """What `BatchingParameters` says, with TensorFlow Serving's defaults.

    Attributes:
        max_batch_size: most rows in a batch, and in a request that is not split.
        timeout_s: how long the first request of a batch waits for others.
        max_enqueued_batches: rows that may wait, in batches; beyond it requests are refused.
        num_threads: batches computed at once.
        allowed_sizes: batch sizes to pad to; empty: any.
        pad_variable: pad inputs of different shape to the largest, with their own first value.
        split_large: split requests larger than a batch.
        max_execution_size: most rows computed at once when large requests are split.
        max_tokens: most padded tokens in a batch, where tokens are counted; 0: 128 for each row.
    """

    max_batch_size: int = 1000
    timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    num_threads: int = os.cpu_count() or 1
    allowed_sizes: tuple[int, ...] = ()
    pad_variable: bool = False
    split_large: bool = False
    max_execution_size: int = 0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_threads"):
            if getattr(self, name) < 1:
                raise StartError(f"batching parameters: {name} must be 1 or more")
        if self.timeout_s < 0:
            raise StartError("batching parameters: batch_timeout_micros must not be negative")
        if list(self.allowed_sizes) != sorted(set(self.allowed_sizes)):
            raise StartError("batching parameters: allowed_batch_sizes entries must be monotonically increasing")
        if self.allowed_sizes and self.allowed_sizes[-1] != self.largest:
            what = "max_execution_batch_size" if self.split_large else "max_batch_size"
            raise StartError(
                f"batching parameters: Last entry in allowed_batch_sizes must match {what}; last entry was "
                f"{self.allowed_sizes[-1]}; expected {self.largest}"
            )
        if self.split_large and self.max_execution_size > self.max_batch_size:
            raise StartError("batching parameters: max_execution_batch_size must not exceed max_batch_size")

    @property
    def largest(self) -> int:
        """Most rows computed at once."""
        if self.split_large and self.max_execution_size:
            return self.max_execution_size
        return self.max_batch_size

    @property
    def token_budget(self) -> int:
        return self.max_tokens or 128 * self.largest


def read_options(path: str, max_tokens: int) -> BatchingOptions:
    """Options from a text proto; without a path, the defaults. Raises `StartError`."""
    found = BatchingParameters()
    if path:
        config.read_text_proto(path, found)
    default = BatchingOptions()
    splits = found.HasField("enable_large_batch_splitting") and found.enable_large_batch_splitting.value
    return BatchingOptions(
        max_batch_size=config.wrapped(found, "max_batch_size", default.max_batch_size),
        timeout_s=config.wrapped(found, "batch_timeout_micros", 0) / 1e6,
        max_enqueued_batches=config.wrapped(found, "max_enqueued_batches", default.max_enqueued_batches),
        num_threads=config.wrapped(found, "num_batch_threads", default.num_threads),
        allowed_sizes=tuple(found.allowed_batch_sizes),
        pad_variable=found.pad_variable_length_inputs,
        split_large=splits,
        max_execution_size=config.wrapped(found, "max_execution_batch_size", 0),
        max_tokens=max_tokens,
    )


@dataclass(eq=False)
class _Task:
    feeds: Feeds
    fetches: Sequence[str]
    call: Call
    rows: int
    key: tuple
    longest: int = 0  # tokens of the longest row; 0 where they are not counted
    tokens: int = 0
    enqueued: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    result: list[np.ndarray] | None = None
    error: Exception | None = None


@dataclass
class _Batch:
    """Tasks that go together, while they are being gathered."""

    options: BatchingOptions
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0
    longest: int = 0
    tokens: int = 0
    full: bool = False

    def offer(self, task: _Task) -> None:
        """Adds the task if it fits; marks the batch full when one like it does not."""
        rows, longest = self.rows + task.rows, max(self.longest, task.longest)
        tokens = self.tokens + task.tokens
        if self.tasks:
            if task.key != self.tasks[0].key:
                return
            if rows > self.options.largest or rows * longest > self.options.token_budget:
                self.full = True
                return
            if rows * longest > max(_WASTE * tokens, _FREE_TOKENS):
                return  # another batch is better for it: one of the two would be mostly padding
        self.tasks.append(task)
        self.rows, self.longest, self.tokens = rows, longest, tokens
        self.full = self.full or rows == self.options.largest


class Batcher:
    """A `Runner` that batches. Thread-safe; `run` blocks its caller until the batch is computed.

    Args:
        runner: computes a batch.
        options: sizes and waiting.
        count_tokens: for given feeds, the number of tokens of each row, or None where it cannot tell.
        metrics, model_name: where sizes and times go.
    """

    def __init__(
        self,
        runner: Runner,
        options: BatchingOptions,
        count_tokens: Callable[[Feeds], np.ndarray | None] = lambda feeds: None,
        metrics: Metrics | None = None,
        model_name: str = "",
    ):
        self._runner, self._options, self._count_tokens = runner, options, count_tokens
        self._metrics, self._name = metrics or Metrics(), model_name
        self._queue: list[_Task] = []
        self._waiting_rows = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{model_name}-{i}", daemon=True)
            for i in range(options.num_threads)
        ]
        for thread in self._threads:
            thread.start()

    # === The caller's side ===

    def run(self, feeds: Feeds, fetches: Sequence[str], call: Call = NO_CALL) -> list[np.ndarray]:
        """See `SessionRunner.run`.

        Raises:
            StatusError: `RESOURCE_EXHAUSTED` at once when the queue is full, and what the session raises.
        """
        call.check()
        rows = _rows(feeds)
        if rows is None or rows == 0:  # a signature without inputs, or nothing to batch
            return self._runner.run(feeds, fetches, call)
        self._metrics.input_batch_size.observe(rows, self._name)
        if rows <= self._options.largest:
            return self._wait(self._submit([self._task(feeds, fetches, call, rows)])[0])
        if not self._options.split_large or rows > self._options.max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._options.max_batch_size}")
        size = self._options.largest
        parts = [{k: v[at : at + size] for k, v in feeds.items()} for at in range(0, rows, size)]
        tasks = self._submit([self._task(p, fetches, call, min(size, rows - i * size)) for i, p in enumerate(parts)])
        results = [self._wait(task) for task in tasks]
        return [np.concatenate(columns) for columns in zip(*results, strict=True)]

    def _task(self, feeds: Feeds, fetches: Sequence[str], call: Call, rows: int) -> _Task:
        trailing = tuple(
            (k, v.dtype.char, v.ndim if self._options.pad_variable else v.shape[1:]) for k, v in sorted(feeds.items())
        )
        task = _Task(feeds, fetches, call, rows, (trailing, tuple(fetches)))
        started = time.perf_counter()
        counts = self._count_tokens(feeds)
        if counts is not None and len(counts) == rows:
            task.longest, task.tokens = int(counts.max()), int(counts.sum())
            self._metrics.tokenizer_latency.observe((time.perf_counter() - started) * 1e6, self._name)
        return task

    def _submit(self, tasks: list[_Task]) -> list[_Task]:
        rows = sum(t.rows for t in tasks)
        with self._changed:
            room = self._options.max_enqueued_batches * self._options.max_batch_size
            if self._closed:
                raise StatusError(Code.UNAVAILABLE, "The model version is being unloaded")
            if self._waiting_rows + rows > room:
                raise StatusError(
                    Code.RESOURCE_EXHAUSTED,
                    f"The batch scheduling queue to which this task was submitted is full; {self._waiting_rows} rows "
                    f"wait and {room} may",
                )
            self._queue += tasks
            self._waiting_rows += rows
            self._changed.notify()
        return tasks

    def _wait(self, task: _Task) -> list[np.ndarray]:
        if not task.done.wait(task.call.remaining_s()):
            with self._changed:
                if task in self._queue:
                    self._queue.remove(task)
                    self._waiting_rows -= task.rows
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded while the request waited for its batch")
        if task.error is not None:
            raise task.error
        assert task.result is not None
        return task.result

    # === The batch threads' side ===

    def _work(self) -> None:
        while True:
            with self._changed:
                tasks = self._take()
            if tasks is None:
                return
            self._process(tasks)

    def _take(self) -> list[_Task] | None:
        """Waits for a batch: the oldest task and what goes with it. Holds the lock. None when closed."""
        while True:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._drop_dead()
            if not self._queue:
                continue
            batch = _Batch(self._options)
            for task in self._queue:
                batch.offer(task)
                if batch.full:
                    break
            left = self._queue[0].enqueued + self._options.timeout_s - time.monotonic()
            if left > 0 and not batch.full and not self._closed:
                self._changed.wait(left)
                continue
            taken = set(batch.tasks)
            self._queue = [t for t in self._queue if t not in taken]
            self._waiting_rows -= batch.rows
            if self._queue:
                self._changed.notify()  # another thread may take the next
            return batch.tasks

    def _drop_dead(self) -> None:
        """Lets go of tasks that nobody waits for any more, before anything is computed for them."""
        for task in list(self._queue):
            try:
                task.call.check()
            except StatusError as error:
                self._queue.remove(task)
                self._waiting_rows -= task.rows
                task.error = error
                task.done.set()

    def _process(self, tasks: list[_Task]) -> None:
        now = time.monotonic()
        for task in tasks:
            self._metrics.queuing_latency.observe((now - task.enqueued) * 1e6, self._name)
        try:
            self._compute(tasks)
        except StatusError as error:
            if len(tasks) == 1 or error.code in _COMMON:
                self._fail(tasks, error)
                return
            for task in tasks:  # which of them is the cause? the others shall have their answers
                self._process([task])
        except Exception as error:  # a batch thread must go on, and each caller learn of the failure
            self._fail(tasks, error)

    @staticmethod
    def _fail(tasks: list[_Task], error: Exception) -> None:
        for task in tasks:
            task.error = error
            task.done.set()

    def _compute(self, tasks: list[_Task]) -> None:
        rows = sum(t.rows for t in tasks)
        padding = next((s - rows for s in self._options.allowed_sizes if s >= rows), 0)
        feeds = {name: self._merge([t.feeds[name] for t in tasks], padding) for name in tasks[0].feeds}
        call = Call(lambda: _longest_remaining(tasks))
        outputs = self._runner.run(feeds, tasks[0].fetches, call)
        for value in outputs:
            if np.ndim(value) == 0:
                raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if value.shape[0] != rows + padding:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        self._metrics.processed_batch_size.observe(rows + padding, self._name)
        self._metrics.padding_size.observe(padding, self._name)
        longest = max(t.longest for t in tasks)
        if longest:
            self._metrics.tokens.add(self._name, by=sum(t.tokens for t in tasks))
            self._metrics.padded_tokens.add(self._name, by=longest * rows)
        at = 0
        for task in tasks:
            task.call.model_s += call.model_s
            task.result = [value[at : at + task.rows] for value in outputs]
            at += task.rows
            task.done.set()

    def _merge(self, values: list[np.ndarray], padding: int) -> np.ndarray:
        if self._options.pad_variable and len({v.shape[1:] for v in values}) > 1:
            shape = np.max([v.shape[1:] for v in values], axis=0)
            values = [_pad(v, (len(v), *shape)) for v in values]
        if padding:
            values = [*values, np.repeat(values[0][:1], padding, axis=0)]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def close(self) -> None:
        """Lets the threads finish what waits, and closes the runner."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._runner.close()


def _rows(feeds: Feeds) -> int | None:
    sizes = set()
    for value in feeds.values():
        if value.ndim == 0:
            raise invalid("Batching session Run() input tensors must have at least one dimension")
        sizes.add(value.shape[0])
    if len(sizes) > 1:
        raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
    return sizes.pop() if sizes else None


def _pad(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    fill = value.flat[0] if value.size else (b"" if value.dtype == object else 0)
    out = np.full(shape, fill, value.dtype)
    out[tuple(slice(n) for n in value.shape)] = value
    return out


def _longest_remaining(tasks: Sequence[_Task]) -> float | None:
    left = [t.call.remaining_s() for t in tasks]
    return None if any(s is None for s in left) else max(s for s in left if s is not None)
