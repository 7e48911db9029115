"""Which version to load or unload next: a pure decision, stateless and idempotent.

The rule is TensorFlow Serving's availability-preserving policy (core/availability_preserving_policy.h): a model that
serves goes on serving, so the old version leaves only once a new one is ready. What it costs is memory for two.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class State(enum.Enum):
    """The life of one version; transitions go down this list only.

    NEW → LOADING → READY → UNLOADING → DISABLED, and from LOADING also to ERROR.
    """

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    DISABLED = "disabled"
    ERROR = "error"


class Act(enum.Enum):
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Snapshot:
    """One version of one model, as the policy sees it."""

    version: int
    state: State
    aspired: bool


@dataclass(frozen=True)
class Action:
    act: Act
    version: int


def next_action(snapshots: Iterable[Snapshot]) -> Action | None:
    """The one step that brings a model nearer to its aspired versions, or None when there is nothing to do.

    Unloads the lowest version that is ready and no longer aspired, if no version is aspired at all, or an aspired
    one is ready, or more than one such leftover is ready; otherwise loads the highest aspired version that is new.
    """
    snapshots = list(snapshots)
    aspired = [s for s in snapshots if s.aspired]
    leftovers = [s.version for s in snapshots if not s.aspired and s.state is State.READY]
    aspired_ready = any(s.state is State.READY for s in aspired)
    if leftovers and (not aspired or aspired_ready or len(leftovers) > 1):
        return Action(Act.UNLOAD, min(leftovers))
    new = [s.version for s in aspired if s.state is State.NEW]
    if new:
        return Action(Act.LOAD, max(new))
    return None
