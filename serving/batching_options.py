"""What `batching_parameters.txt` says, TensorFlow Serving's message, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass

from serving import config
from serving.errors import StartError
from serving.flags import CPUS
from serving.protos import BatchingParameters


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
    num_threads: int = CPUS
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
