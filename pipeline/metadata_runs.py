"""What ML Metadata knows of one run, and a run that goes on from another."""

from __future__ import annotations

from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.portable.mlmd import context_lib, execution_lib, store_ext

from pipeline.local import is_resolver, step_id

_pb: Any = metadata_store_pb2  # generated code: mypy sees no messages in it


def has_run(connection: Any, ir: Any, node_id: str) -> bool:
    """Whether a node was started in the run of this representation, whatever came of it."""
    with metadata.Metadata(connection) as handle:
        return bool(_executions(handle, ir, node_id, _run_id(ir)))


def outputs(connection: Any, ir: Any) -> dict[str, dict[str, list[Any]]]:
    """The output artifacts of every node that succeeded in the run, by node and name."""
    found = {}
    with metadata.Metadata(connection) as handle:
        for node in ir.nodes:
            done = [
                execution
                for execution in _executions(handle, ir, step_id(node), _run_id(ir))
                if execution_lib.is_execution_successful(execution)
            ]
            if done:
                found[step_id(node)] = dict(execution_lib.get_output_artifacts(handle, done[-1].id))
    return found


def take_over(connection: Any, ir: Any, earlier: str, again: str) -> None:
    """Gives the run of this representation what an earlier one did, but for a step and all that depends on it.

    Args:
      connection: of the metadata.
      ir: of the new run.
      earlier: the id of the other run.
      again: the step that is made again; what it looked up is looked up again.
    """
    nodes = {step_id(node): node for node in ir.nodes}
    stale = {again}
    for name, node in nodes.items():  # in order: what depends on a step comes after it
        if set(node.pipeline_node.upstream_nodes) & stale:
            stale.add(name)
    looked_up = {name for name in nodes[again].pipeline_node.upstream_nodes if is_resolver(nodes[name])}
    with metadata.Metadata(connection) as handle:
        for name in nodes.keys() - stale - looked_up:
            contexts = context_lib.prepare_contexts(handle, nodes[name].pipeline_node.contexts)
            (run,) = [context for context in contexts if context.name == _run_id(ir)]
            done = [e for e in _executions(handle, ir, name, earlier) if execution_lib.is_execution_successful(e)]
            for execution in done[-1:]:
                artifacts = execution_lib.get_output_artifacts(handle, execution.id)
                handle.store.put_attributions_and_associations(
                    [
                        _pb.Attribution(artifact_id=artifact.id, context_id=run.id)
                        for found in artifacts.values()
                        for artifact in found
                    ],
                    [_pb.Association(execution_id=execution.id, context_id=run.id)],
                )


def _run_id(ir: Any) -> str:
    return ir.runtime_spec.pipeline_run_id.field_value.string_value


def _executions(handle: Any, ir: Any, node_id: str, run_id: str) -> list[Any]:
    return list(
        store_ext.get_node_executions(
            handle.store, pipeline_id=ir.pipeline_info.id, node_id=node_id, pipeline_run_id=run_id
        )
    )
