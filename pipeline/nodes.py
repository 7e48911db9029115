"""The steps of the graph and what each waits for, for orchestrators that run every step by itself.

A window of N spans has N places, `examples_0` being the newest, so that what was made of the graph once holds for
whatever spans there are when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfx import types
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.common.resolver import Resolver
from tfx.types.channel import UnionChannel
from tfx.utils import name_utils

from components.config import span_of_step, step_name


@dataclass
class Step:
    """A node of the graph: its id, executor and edges; a producer is a step's id and an output's name."""

    id: str
    executor: str
    on_beam: bool
    outputs: dict[str, type[types.Artifact]]
    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    lookups: dict[str, str] = field(default_factory=dict)  # input → the resolver's id
    after: set[str] = field(default_factory=set)


def place_of(node_id: str, members: Sequence[int]) -> str:
    """The step of a node: a span's ingest is known by its age in the window, 0 for the newest."""
    span = span_of_step(node_id)
    return node_id if span is None else f"examples_{len(members) - 1 - members.index(span)}"


def steps_of(graph: Any, members: Sequence[int], window: int) -> list[Step]:
    """The steps of a TFX pipeline, in its order.

    Args:
      graph: from `pipeline.graph`.
      members: spans that it was built for, oldest first.
      window: how many places there are for spans.

    A resolver is no step: `lookups` of the steps that it serves name it.
    """
    nodes = [node for node in graph.components if not isinstance(node, Resolver)]
    resolvers = {node.id for node in graph.components if isinstance(node, Resolver)}
    steps = []
    for node in nodes:
        step = Step(
            place_of(node.id, members),
            name_utils.get_full_name(node.executor_spec.executor_class),
            isinstance(node.executor_spec, executor_spec.BeamExecutorSpec),
            {key: channel.type for key, channel in node.outputs.items()},
        )
        for key, channel in node.inputs.items():
            _connect(step, key, channel, members, resolvers)
        step.after |= {place_of(other.id, members) for other in node.upstream_nodes if other.id not in resolvers}
        steps.append(step)
    return steps if window == 1 else _with_places(steps, window)


def _connect(step: Step, key: str, channel: Any, members: Sequence[int], resolvers: set[str]) -> None:
    if isinstance(channel, UnionChannel):
        for number, one in enumerate(channel.channels):
            step.inputs[f"{key}__{number}"] = (place_of(one.producer_component_id, members), one.output_key)
    elif channel.producer_component_id in resolvers:
        step.lookups[key] = channel.producer_component_id
    else:
        step.inputs[key] = (place_of(channel.producer_component_id, members), channel.output_key)


def _with_places(steps: list[Step], window: int) -> list[Step]:
    """As many places for spans as the window has, whatever spans there were when the graph was built."""
    (pattern, *_) = [step for step in steps if step_name(step.id) == "examples" and step.id != "examples"]
    others = [step for step in steps if step_name(step.id) != "examples" or step.id == "examples"]
    for step in others:
        if step.id == "examples":
            ids = [f"examples_{number}" for number in range(window)]
            step.inputs = {f"spans__{number}": (name, "examples") for number, name in enumerate(ids)}
            step.after = set(ids)
    places = [
        Step(f"examples_{number}", pattern.executor, pattern.on_beam, pattern.outputs) for number in range(window)
    ]
    weights = [step for step in others if step.id == "weights"]
    return [*weights, *places, *(step for step in others if step.id != "weights")]
