"""The local runner: the graph's nodes one after the other, in this process.

Each step waits for the one before, but for the ingests of a window's spans and the conversion of pretrained weights,
which is made once. Measured on 2 cores, ingests side by side are not clearly faster
(`tests/benchmarks/parallel_steps.py`), and the work of a large step is spread over the cores by Beam.

TFX's LocalDagRunner does the same; this one also tells a listener when a step starts and ends, whether it was
answered from TFX's cache, tries a step again, bounds its time, gives it a log of its own, and ends a failed step with
the error that a person can act on.
"""

from __future__ import annotations

import datetime
import faulthandler
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from tfx import types
from tfx.dsl.compiler import compiler, constants
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, partial_run_utils, runtime_parameter_utils
from tfx.orchestration.portable.mlmd import execution_lib

from components import beam_memo
from components.config import LocalConfig, step_name
from components.errors import PipelineError

Event = Literal["started", "done", "cached", "again", "failed"]
Listener = Callable[[str, Event, float], None]
_RESOLVER = f"{Resolver.__module__}.{Resolver.__name__}"  # as the compiler names the type of a node


@dataclass
class Result:
    """What a run did: seconds and output artifacts by node, the latter by output name."""

    seconds: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, dict[str, list[types.Artifact]]] = field(default_factory=dict)


# What TensorFlow, Beam and ML Metadata say in errors of their own, whose texts as a whole may quote data.
_SIGNS = {
    "No space left on device": ("the disk is full; free some space and run again: what is done is kept", "OSError"),
    "Read-only file system": ("the file system is read-only; what is done is kept", "OSError"),
    "database is locked": ("another process holds the metadata; end it and run again: what is done is kept", "Busy"),
    "Concurrent writes aborted": (
        "another process holds the metadata; end it and run again: what is done is kept",
        "Busy",
    ),
}


# Kinds of errors that another try cannot help.
FINAL = frozenset({"ConfigError", "DataError", "CheckpointError"})
_GRACE_S = 60.0  # between asking a step to end and ending the process


class StepTimeout(PipelineError):
    """A step took longer than it may."""


class StepError(PipelineError):
    """A step failed; the message is the cause's own where the cause is meant for a person."""

    def __init__(self, step: str, message: str, exit_status: int = 1, kind: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.exit_status = exit_status
        if kind:
            self.kind = kind  # of the cause: a refusal of the data is no passing trouble


def run(
    pipeline: tfx_pipeline.Pipeline,
    listener: Listener,
    from_step: str | None = None,
    to_step: str | None = None,
    tries: LocalConfig | None = None,
    log: Callable[[str], AbstractContextManager[None]] | None = None,
    run_id: str = "",
) -> Result:
    """Runs every node, or those from one step to another.

    Args:
      pipeline: from `pipeline.graph`.
      listener: told of each step: its id, what happened, and seconds since it started. A resolver is no step: it
        only looks something up.
      from_step, to_step: node ids; the steps before are taken from the last run.
      tries: how often and how long each step is tried; default: once, without an end.
      log: given a step's id, makes what it writes go to its own log.
      run_id: of the run's record; the metadata knows the run by it.

    Raises:
      StepError: naming the step; what was done before it is kept and is not done again.
    """
    ir, deployment, connection = compile_run(pipeline, run_id or datetime.datetime.now(datetime.UTC).isoformat())
    if from_step or to_step:
        _mark_part(ir, connection, from_step, to_step)
    result = Result()
    for node in ir.nodes:
        if node.pipeline_node.execution_options.HasField("skip"):
            continue
        with log(step_id(node)) if log is not None and not is_resolver(node) else nullcontext():
            _launch_again(ir, deployment, connection, node, listener, result, tries or LocalConfig())
    return result


def _mark_part(ir: Any, connection: Any, from_step: str | None, to_step: str | None) -> None:
    """Marks which nodes run, and takes what the others did from the last run.

    The ingests of a window's spans are part of the step `examples`. What a step looks up, such as the live model, is
    looked up anew: it may be another than the last run's.
    """
    first = [step_id(node) for node in ir.nodes if from_step and step_name(step_id(node)) == from_step]
    partial_run_utils.mark_pipeline(ir, from_nodes=first or None, to_nodes=[to_step] if to_step else None)
    options = {step_id(node): node.pipeline_node.execution_options for node in ir.nodes}
    running = {step for step, option in options.items() if option.HasField("run")}
    for node in ir.nodes:
        if is_resolver(node) and running & set(node.pipeline_node.downstream_nodes):
            options[step_id(node)].run.SetInParent()  # no longer `skip`
    with explained(from_step or str(to_step)), metadata.Metadata(connection) as handle:
        try:
            partial_run_utils.snapshot(handle, ir)
        except LookupError as error:
            raise PipelineError(
                f"--from {from_step}: no earlier run in this root did the steps before it; leave --from out"
            ) from error


def _launch_again(
    ir: Any, deployment: Any, connection: Any, node: Any, listener: Listener, result: Result, tries: LocalConfig
) -> None:
    """Launches a node as often as its retries say; a refusal, or a mistake of the configuration, only once."""
    step = step_id(node)
    retries, timeout = tries.of(step)
    for number in range(retries + 1):
        try:
            with limited(step, timeout):
                launch(ir, deployment, connection, node, listener, result)
            return
        except StepError as error:
            if error.kind in FINAL or number == retries:
                raise
            listener(step, "again", result.seconds[step])
            time.sleep(tries.retry_delay_s)


@contextmanager
def limited(step: str, timeout_s: float | None) -> Iterator[None]:
    """Ends a step that takes longer, by an exception in the main thread.

    Code that never comes back to Python does not see it: such a process ends a minute later, with status 1 and where it
    hung on standard error. What was done before is kept.
    """
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise StepTimeout(f"step {step}: took longer than {timeout_s:g} s (local.timeout_s); what is done is kept")

    before = signal.signal(signal.SIGALRM, expire)
    faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def compile_run(pipeline: tfx_pipeline.Pipeline, run_id: str) -> tuple[Any, Any, Any]:
    """The intermediate representation of one run, its deployment configuration and the metadata's connection."""
    ir = compiler.Compiler().compile(pipeline)
    runtime_parameter_utils.substitute_runtime_parameter(ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(ir)
    connection = getattr(
        deployment.metadata_connection_config, deployment.metadata_connection_config.WhichOneof("connection_config")
    )
    return ir, deployment, connection


def step_id(node: Any) -> str:
    """The id of a node of the representation."""
    return node.pipeline_node.node_info.id


def is_resolver(node: Any) -> bool:
    """Whether a node of the representation only looks something up."""
    return node.pipeline_node.node_info.type.name == _RESOLVER


def launch(ir: Any, deployment: Any, connection: Any, node: Any, listener: Listener, result: Result) -> None:
    """Runs one node; what came of it goes to `result`.

    Raises:
      StepError: naming the step.
    """
    beam_memo.remember()
    step = step_id(node)
    began = time.monotonic()
    tell: Listener = (lambda *_: None) if is_resolver(node) else listener
    tell(step, "started", 0.0)
    try:
        with explained(step):
            info = launcher.Launcher(
                pipeline_node=node.pipeline_node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=ir.pipeline_info,
                pipeline_runtime_spec=ir.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(deployment, step),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, step),
            ).launch()
    except StepError:
        result.seconds[step] = time.monotonic() - began
        tell(step, "failed", result.seconds[step])
        raise
    result.seconds[step] = time.monotonic() - began
    # The launcher makes a temporary folder only for an execution that it really starts.
    ran = info is None or info.tmp_dir
    if info is not None and info.execution_id is not None:
        # From MLMD: what the launcher hands back of a cached execution names folders that were never made.
        with metadata.Metadata(connection) as handle:
            result.outputs[step] = dict(execution_lib.get_output_artifacts(handle, info.execution_id))
    tell(step, "done" if ran else "cached", result.seconds[step])


@contextmanager
def explained(step: str) -> Iterator[None]:
    """Turns what a step raises into a StepError."""
    try:
        yield
    except Exception as error:
        raise explain(step, error) from error


def explain(step: str, error: BaseException) -> StepError:
    """The error of a step in words for a person: ours as it is, any other by its kind, never with data in it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for item in chain:
        if isinstance(item, PipelineError):
            return StepError(
                step, re.sub(r" \[while running '[^']*'\]$", "", str(item)), item.exit_status, type(item).__name__
            )
    for item in chain:
        if isinstance(item, OSError) and item.errno is not None:
            return StepError(step, f"step {step}: {item.strerror}: {item.filename or 'no file named'}", kind="OSError")
    for item in chain:
        for sign, (meaning, kind) in _SIGNS.items():
            if sign in str(item):
                return StepError(step, f"step {step}: {meaning}", kind=kind)
    kinds = ", caused by ".join(dict.fromkeys(type(item).__name__ for item in chain))
    return StepError(step, f"step {step} failed ({kinds})", kind=type(chain[0]).__name__)
