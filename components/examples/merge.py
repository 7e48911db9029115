"""Which split of a window a span's split becomes, and one ingest report of several; pure functions."""

from __future__ import annotations

from collections import Counter
from typing import Any


def place(split: str, newest: bool, *, evaluated: str, evaluate_newest: bool, guard: bool) -> str:
    """Which split of the window a split of a span goes to.

    Args:
      split: of the span.
      newest: whether the span is the window's newest.
      evaluated: the split that the gates look at.
      evaluate_newest: the whole newest span is evaluated on.
      guard: the spans before it keep their own evaluated split, so that the gates hold on them too.
    """
    if not evaluate_newest:
        return split
    if newest:
        return evaluated
    return split if guard or split != evaluated else "train"


def merge(reports: list[dict[str, Any]], *, evaluated: str, evaluate_newest: bool, guard: bool) -> dict[str, Any]:
    """One ingest report of several, oldest first. `spans` says what each of them gave; files name their span."""
    splits: dict[str, dict[str, Any]] = {}
    for report in reports:
        for split, counts in report["splits"].items():
            target = place(
                split, report is reports[-1], evaluated=evaluated, evaluate_newest=evaluate_newest, guard=guard
            )
            total = splits.setdefault(target, {"rows": 0, "labels": {}, "without_label": 0})
            total["rows"] += counts["rows"]
            total["without_label"] += counts["without_label"]
            total["labels"] = dict(sorted((Counter(total["labels"]) + Counter(counts["labels"])).items()))
    bad = sum(report["bad"]["rows"] for report in reports)
    rows = sum(report["rows"] for report in reports)
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
