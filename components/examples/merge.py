"""Which split of a window a span's split becomes, and one ingest report of several; pure functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


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


def merge(reports: list[dict[str, Any]], roles: Roles) -> dict[str, Any]:
    """One ingest report of several, oldest first. `spans` says what each of them gave; files name their span."""
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
    dropped: Counter[str] = Counter()
    for report in reports:
        reasons.update(report["bad"]["reasons"])
        dropped.update(report["dropped"])
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
        "leaked": [{"span": report["span"], **leak} for report in reports for leak in report["leaked"]],
        "dropped": dict(dropped),
        "files": [{"span": report["span"], **file} for report in reports for file in report["files"]],
    }
