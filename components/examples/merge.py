"""Which split of a window a span's split becomes, and one ingest report of several; pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from components.examples.leaks import Leak


@dataclass(frozen=True)
class Roles:
    """What each span of a window is for.

    Attributes:
      evaluated: the split that the gates look at.
      evaluate_newest: the whole newest span is evaluated on.
      guard: then, too, the spans before it keep their own evaluated split, so that the gates hold on them as well.
      learn_last: so many of the spans are learned from; the older ones give their evaluated split alone.
    """

    evaluated: str
    evaluate_newest: bool = False
    guard: bool = True
    learn_last: int | None = None


@dataclass
class Dropped:
    """Rows of train that were left out because their text is evaluated on, too; `labels` has "" for rows without."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)


def place(split: str, age: int, roles: Roles) -> str | None:
    """Which split of the window a split of a span goes to; None: to none.

    Args:
      split: of the span.
      age: how many spans of the window are newer; 0 for the newest.
      roles: of the window.
    """
    if roles.evaluate_newest and age == 0:
        return roles.evaluated
    # The newest span is not learned from where it is evaluated on.
    learned = roles.learn_last is None or age - roles.evaluate_newest < roles.learn_last
    keeps = roles.guard or not roles.evaluate_newest
    if split == roles.evaluated:
        return split if keeps else ("train" if learned else None)
    return split if learned else None


def prefix_of(span: int, split: str) -> str:
    """What the names of a span's files begin with in the window."""
    return f"span-{span}-{split}-"


def span_of(path: str) -> int | None:
    """The span that a file of a window came from; None for a file of no window."""
    found = re.match(r"span-(\d+)-", path.rpartition("/")[2])
    return None if found is None else int(found[1])


def merge(
    reports: list[dict[str, Any]], roles: Roles, leaks: Sequence[Leak] = (), dropped: Dropped | None = None
) -> dict[str, Any]:
    """One ingest report of several. `spans` says what each of them gave; files name their span.

    Args:
      reports: of the spans, oldest first.
      roles: of the window.
      leaks: texts that two splits of the window share, of one span or of several, before any were dropped.
      dropped: what was left out of the window's train for that.
    """
    splits: dict[str, dict[str, Any]] = {}
    for number, report in enumerate(reports):
        for split, counts in report["splits"].items():
            target = place(split, len(reports) - 1 - number, roles)
            if target is None:
                continue
            total = splits.setdefault(target, {"rows": 0, "labels": {}, "without_label": 0})
            total["rows"] += counts["rows"]
            total["without_label"] += counts["without_label"]
            total["labels"] = dict(sorted((Counter(total["labels"]) + Counter(counts["labels"])).items()))
    bad = sum(report["bad"]["rows"] for report in reports)
    rows = sum(report["rows"] for report in reports)  # read; those that no split takes are among them
    share = bad / (bad + rows) if bad + rows else 0.0
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report["bad"]["reasons"])
    if dropped is not None and dropped.rows:
        train = splits["train"]
        train["rows"] -= dropped.rows
        train["without_label"] -= dropped.labels[""]
        train["labels"] = dict(sorted((Counter(train["labels"]) - dropped.labels).items()))
    return {
        "span": reports[-1]["span"],
        "version": reports[-1]["version"],
        "spans": [{key: report[key] for key in ("span", "version", "rows")} for report in reports],
        "rows": rows,
        "splits": splits,
        "bad": {
            "rows": bad,
            "share": share,
            "reasons": dict(reasons.most_common()),
        },
        "leaked": [leak.to_json() for leak in leaks],
        "dropped": {"train": dropped.rows} if dropped is not None and dropped.rows else {},
        "files": [{"span": report["span"], **file} for report in reports for file in report["files"]],
    }
