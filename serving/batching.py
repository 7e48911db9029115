"""Batches across requests: a queue in front of a session, and threads that empty it.

Parameters and their meaning are TensorFlow Serving's (`batching_parameters.txt`; batching/batching_session.h and
TensorFlow's shared_batch_scheduler.h). Its C++ batcher, which `tf.nondifferentiable_batch_function` wraps, cannot do
what is asked of this one: refuse at once when full, drop a request whose deadline has passed or whose client has
gone, judge a batch by its tokens, and answer the good requests of a batch in which one is bad. The work in Python is
some tens of microseconds a request; the session runs without the interpreter's lock.

    start ─▶ queue (bounded) ─▶ the leading batch thread: count tokens, take what goes together ─▶ session ─▶ split

One thread leads at a time: it alone waits for requests, and hands the lead on before it computes. So a wake-up always
reaches the one thread that acts on it. Nothing foreign (a deadline, a client's state, the tokeniser, a callback) is
asked while the queue's lock is held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.batching_options import BatchingOptions
from serving.errors import Code, StatusError, invalid
from serving.loader import NO_CALL, Call, Feeds, Runner
from serving.metrics import Metrics

_log = logging.getLogger(__name__)
# How much a batch's longest text may make of it: rows × longest is at most so many times what its requests would come
# to apart, each with its own longest.
_SPREAD = 2.0
# Failures that the other requests of a batch share anyway.
_COMMON = (Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)

# Told once of a request's outcome, in a batch thread: the outputs, or the error.
Done = Callable[[list[np.ndarray] | None, Exception | None], None]


@dataclass(eq=False)
class _Task:
    feeds: Feeds
    fetches: Sequence[str]
    call: Call
    rows: int
    key: tuple
    done: Done
    queued: bool = True
    counted: bool = False
    passed_over: bool = False  # a batch has gone without it
    longest: int = 0  # tokens of the longest row; 0 where they are not counted
    tokens: int = 0
    enqueued: float = field(default_factory=time.monotonic)


@dataclass
class _Batch:
    """Tasks that go together, while they are being gathered."""

    options: BatchingOptions
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0
    longest: int = 0
    apart: int = 0  # rows × longest of each task, summed up
    full: bool = False

    def fill(self, waiting: Sequence[_Task]) -> None:
        """Takes the oldest task, and then those whose texts are nearest to it in length, such as were passed over
        first: else a full queue lets a text of rare length wait for batch after batch."""
        oldest = waiting[0]
        # Of equal ones the older first; the oldest was passed over itself, if any was.
        for task in sorted(waiting, key=lambda t: (not t.passed_over, abs(t.longest - oldest.longest))):
            self._offer(task)
            if self.full:
                return

    def _offer(self, task: _Task) -> None:
        """Adds the task if it fits; marks the batch full when one like it does not."""
        rows, longest = self.rows + task.rows, max(self.longest, task.longest)
        apart = self.apart + task.rows * task.longest
        if self.tasks:
            if task.key != self.tasks[0].key or rows * longest > _SPREAD * apart:
                return  # a long text among many short ones: another batch is better for it
            if rows > self.options.largest or rows * longest > self.options.token_budget:
                self.full = True
                return
        self.tasks.append(task)
        self.rows, self.longest, self.apart = rows, longest, apart
        self.full = rows == self.options.largest

    def missing_rows(self) -> int:
        """How many more rows like these would fill the batch."""
        rows = self.options.largest
        if self.longest:
            rows = min(rows, self.options.token_budget // self.longest + 1)
        return max(1, rows - self.rows)


class Batcher:
    """A `Runner` that batches. Thread-safe; `start` never blocks, `run` blocks its caller until it has its answer.

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
        self._lead = threading.Lock()
        self._changed = threading.Condition()  # guards the queue; only the leader waits for it
        self._wake_at = 1  # waiting rows at which the leader has something to do
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
        answered = threading.Event()
        outcome: list[tuple[list[np.ndarray] | None, Exception | None]] = []

        def done(values: list[np.ndarray] | None, error: Exception | None) -> None:
            outcome.append((values, error))
            answered.set()

        withdraw = self.start(feeds, fetches, call, done)
        call.on_end = answered.set
        if call.ended:  # before it could be told
            answered.set()
        answered.wait(call.remaining_s())
        if not outcome:
            withdraw()
            call.check()  # raises, if the client has gone
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded while the request waited for its batch")
        values, error = outcome[0]
        if error is not None:
            raise error
        assert values is not None
        return values

    def start(self, feeds: Feeds, fetches: Sequence[str], call: Call, done: Done) -> Callable[[], None]:
        """Queues a request; `done` is told of its outcome.

        Returns:
            What to call when nobody waits for the outcome any more: what is still queued of it is not computed.

        Raises:
            StatusError: `RESOURCE_EXHAUSTED` when the queue is full, `INVALID_ARGUMENT` for feeds that no batch takes.
        """
        call.check()
        rows = _rows(feeds)
        if rows is None or rows == 0:  # a signature without inputs, or nothing to batch
            done(self._runner.run(feeds, fetches, call), None)
            return lambda: None
        self._metrics.input_batch_size.observe(rows, self._name)
        size = self._options.largest
        if rows <= size:
            tasks = [self._task(feeds, fetches, call, rows, done)]
        elif not self._options.split_large or rows > self._options.max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._options.max_batch_size}")
        else:
            starts = range(0, rows, size)
            parts = _Parts(len(starts), done)
            tasks = [
                self._task(
                    {k: v[at : at + size] for k, v in feeds.items()}, fetches, call, min(size, rows - at), parts.done(i)
                )
                for i, at in enumerate(starts)
            ]
        self._submit(tasks)
        return lambda: self._withdraw(tasks)

    def _task(self, feeds: Feeds, fetches: Sequence[str], call: Call, rows: int, done: Done) -> _Task:
        trailing = tuple(
            (k, v.dtype.char, v.ndim if self._options.pad_variable else v.shape[1:]) for k, v in sorted(feeds.items())
        )
        return _Task(feeds, fetches, call, rows, (trailing, tuple(fetches)), done)

    def _submit(self, tasks: list[_Task]) -> None:
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
            if self._waiting_rows >= self._wake_at:
                self._changed.notify()

    def _withdraw(self, tasks: Sequence[_Task]) -> None:
        """Takes tasks out of the queue; those that are not in it any more are computed to no end."""
        with self._changed:
            self._remove([t for t in tasks if t.queued])
            self._changed.notify()  # what the leader waits for was reckoned with them

    def _remove(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            task.queued = False
            self._waiting_rows -= task.rows
        if tasks:
            self._queue = [t for t in self._queue if t.queued]

    # === The batch threads' side ===

    def _work(self) -> None:
        while True:
            with self._lead:
                tasks = self._gather()
            if tasks is None:
                return
            now = time.monotonic()
            for task in tasks:
                self._metrics.queuing_latency.observe((now - task.enqueued) * 1e6, self._name)
            self._process(tasks)

    def _gather(self) -> list[_Task] | None:
        """Waits for a batch: the oldest task and what goes with it. None when closed and empty."""
        while True:
            with self._changed:
                self._wake_at = 1
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return None
                new = [t for t in self._queue if not t.counted]
            self._count(new)
            with self._changed:
                counted = [t for t in self._queue if t.counted]
                if not counted:  # withdrawn meanwhile
                    continue
                batch = _Batch(self._options)
                batch.fill(counted)
                left = batch.tasks[0].enqueued + self._options.timeout_s - time.monotonic()
                if left > 0 and not batch.full and not self._closed:
                    # What comes meanwhile is looked at then, or as soon as it could fill the batch.
                    self._wake_at = self._waiting_rows + batch.missing_rows()
                    if len(counted) == len(self._queue):
                        self._changed.wait(left)
                    continue
                self._remove(batch.tasks)
                for task in counted:
                    task.passed_over = True
            alive = self._alive(batch.tasks)
            if alive:
                return alive

    @staticmethod
    def _alive(tasks: Sequence[_Task]) -> list[_Task]:
        """Ends tasks that nobody waits for any more, before anything is computed for them; returns the others."""
        alive = []
        for task in tasks:
            try:
                task.call.check()
            except Exception as error:  # also where a client's state cannot be told: no thread must end over it
                _tell(task, None, error)
            else:
                alive.append(task)
        return alive

    def _count(self, new: Sequence[_Task]) -> None:
        """Counts the tokens of new tasks, all of one kind in one call of the tokeniser."""
        kinds: dict[tuple, list[_Task]] = {}
        for task in new:
            task.counted = True
            kinds.setdefault(task.key, []).append(task)
        for tasks in kinds.values():
            started = time.perf_counter()
            try:
                counts = self._count_tokens({k: self._merge([t.feeds[k] for t in tasks], 0) for k in tasks[0].feeds})
            except Exception as error:  # the batch is then judged by rows alone
                _log.error("model %s: tokens cannot be counted: %s", self._name, type(error).__name__)
                continue
            if counts is None or len(counts) != sum(t.rows for t in tasks):
                continue
            at = 0
            for task in tasks:
                part = counts[at : at + task.rows]
                task.longest, task.tokens = int(part.max()), int(part.sum())
                at += task.rows
            self._metrics.tokenizer_latency.observe((time.perf_counter() - started) * 1e6, self._name)

    def _process(self, tasks: list[_Task]) -> None:
        try:
            results = self._compute(tasks)
        except StatusError as error:
            if len(tasks) == 1 or error.code in _COMMON:
                self._fail(tasks, error)
                return
            for task in tasks:  # which of them is the cause? the others shall have their answers
                self._process([task])
        except Exception as error:  # a batch thread must go on, and each caller learn of the failure
            self._fail(tasks, error)
        else:
            for task, values in zip(tasks, results, strict=True):
                _tell(task, values, None)

    @staticmethod
    def _fail(tasks: list[_Task], error: Exception) -> None:
        for task in tasks:
            _tell(task, None, error)

    def _compute(self, tasks: list[_Task]) -> list[list[np.ndarray]]:
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
        self._metrics.wrapped_run_count.add(self._name)
        longest = max(t.longest for t in tasks)
        if longest:
            self._metrics.tokens.add(self._name, by=sum(t.tokens for t in tasks))
            self._metrics.padded_tokens.add(self._name, by=longest * rows)
        results, at = [], 0
        for task in tasks:
            task.call.model_s += call.model_s
            results.append([value[at : at + task.rows] for value in outputs])
            at += task.rows
        return results

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


class _Parts:
    """The outcome of a request that was split: told once, of all parts or of the first failure."""

    def __init__(self, count: int, done: Done):
        self._values: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._missing, self._done, self._lock = count, done, threading.Lock()

    def done(self, number: int) -> Done:
        def part(values: list[np.ndarray] | None, error: Exception | None) -> None:
            with self._lock:
                if self._missing == 0:
                    return
                self._missing = 0 if error is not None else self._missing - 1
                if values is not None:
                    self._values[number] = values
                last = self._missing == 0
            if error is not None:
                self._done(None, error)
            elif last:
                self._done([np.concatenate(columns) for columns in zip(*self._values, strict=True)], None)

        return part


def _tell(task: _Task, values: list[np.ndarray] | None, error: Exception | None) -> None:
    try:
        task.done(values, error)
    except Exception as failure:  # one caller's trouble is not the next one's
        _log.error("a request's outcome could not be handed over: %s", type(failure).__name__)


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
