"""What an ingestion came to: the counts that workers handed back, put together, checked and reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from apache_beam.io.filesystems import FileSystems

from components.errors import DataError
from components.examples import head
from components.examples.files import FilePlan, InputFile, Item
from components.examples.ingest import HASHES, Ingestion, make_folder, read_bytes, read_plan, writing
from components.examples.leaks import Leak, find_leaks
from components.examples.rows import RowSpec

DEAD_LETTERS = "dead_letters.jsonl"
REPORT = "ingest_report.json"


@dataclass
class Outcome:
    """All counts of an ingestion. `splits` in the order train, eval, test."""

    splits: dict[str, int]
    labels: dict[str, Counter[str]]
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    files: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)  # paths, in the order of the files
    hashes: dict[str, list[str]] = field(default_factory=dict)  # paths, by split
    items: list[Item] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Good rows, the dropped ones included."""
        return sum(self.splits.values()) + sum(self.dropped.values())

    @property
    def bad_share(self) -> float:
        """Bad rows among all rows."""
        bad = sum(self.bad.values())
        return bad / (bad + self.rows) if bad else 0.0


def collect(ingestion: Ingestion, inputs: Iterable[InputFile], split_names: Sequence[str]) -> Outcome:
    """Reads what the workers handed back.

    Raises:
      DataError: the first error that one of them handed back, or a column that no row of a JSONL file has.
    """
    outcome = Outcome(dict.fromkeys(split_names, 0), {split: Counter() for split in split_names})
    inputs = list(inputs)
    # Errors of files first: they say more than what follows from them.
    plans = [read_plan(_read_json(ingestion.path("plan", file.index))) for file in inputs]
    for file, plan in zip(inputs, plans, strict=True):
        summaries = [_read_json(ingestion.path("item", file.index, item.part)) for item in plan.items]
        for summary in summaries:
            if "error" in summary:
                raise DataError(summary["error"])
        _check_keys(file, summaries, ingestion.spec)
        _add_file(ingestion, outcome, file, plan, summaries)
    return outcome


def _add_file(
    ingestion: Ingestion, outcome: Outcome, file: InputFile, plan: FilePlan, summaries: list[dict[str, Any]]
) -> None:
    rows = bad = 0
    for item, summary in zip(plan.items, summaries, strict=True):
        for split, count in summary["rows"].items():
            outcome.splits[split] += count
            outcome.labels[split].update(summary["labels"][split])
            outcome.hashes.setdefault(split, []).append(ingestion.path(f"hashes-{split}", file.index, item.part))
        if summary["bad"]:
            outcome.dead_letters.append(ingestion.path("dead", file.index, item.part))
        outcome.bad.update(summary["bad"])
        outcome.dropped.update(summary["dropped"])
        rows += sum(summary["rows"].values()) + sum(summary["dropped"].values())
        bad += sum(summary["bad"].values())
    outcome.items.extend(plan.items)
    entry = {"file": file.name, "split": file.split, "bytes": plan.bytes, "sha256": plan.sha256}
    outcome.files.append({**entry, "rows": rows, "bad": bad})


def _check_keys(file: InputFile, summaries: list[dict[str, Any]], spec: RowSpec) -> None:
    """JSONL has no header: a column is missing where no object of the whole file has it."""
    with_objects = [summary for summary in summaries if summary["objects"]]
    if not with_objects:
        return
    unseen = set.intersection(*(set(summary["unseen"]) for summary in with_objects))
    if unseen:
        raise head.missing_key(file.name, sorted(unseen)[0], with_objects[0]["keys"], spec.columns)


def check_bad_share(outcome: Outcome, max_bad_share: float, dead_letters: str) -> None:
    """Stops the run when too many rows are bad.

    Raises:
      DataError: with the counts by reason and the place of the dead letters.
    """
    if outcome.bad_share <= max_bad_share:
        return
    bad = sum(outcome.bad.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.bad.most_common())
    raise DataError(
        f"{bad} of {bad + outcome.rows} rows are bad ({outcome.bad_share:.2%}), more than data.max_bad_share "
        f"allows ({max_bad_share:.2%}): {reasons}. Each stands with its file, line and reason in {dead_letters}: "
        "correct the files, or raise data.max_bad_share"
    )


def check_splits(outcome: Outcome) -> None:
    """Stops the run when a split has no row.

    Raises:
      DataError: naming the split and why it may be empty.
    """
    for split, rows in outcome.splits.items():
        if rows:
            continue
        if outcome.dropped[split]:
            raise all_dropped(split, outcome.dropped[split])
        if any(entry["split"] == "all" for entry in outcome.files):
            why = "no group fell into it: give more groups, or a greater share in data.hash_split"
        else:
            why = f"its files hold no good row: correct data.splits.{split}"
        raise DataError(f"split {split} is empty: {why}")


def all_dropped(split: str, rows: int) -> DataError:
    """The error of a split that has no row left."""
    return DataError(
        f"split {split} is empty: all {rows} rows were dropped as leaked: give other data, or drop_leaked = false"
    )


def count_leaks(outcome: Outcome) -> dict[tuple[str, str], bytes]:
    """Counts the texts that stand in two splits, into `outcome`; returns their hashes by pair of splits."""
    by_split = {split: outcome.hashes.get(split, []) for split in outcome.splits}
    outcome.leaks, shared = find_leaks(by_split, read_bytes, outcome.rows)
    return shared


def build_report(outcome: Outcome, span: int, version: int | None) -> dict[str, Any]:
    """The content of `ingest_report.json`: counts and hashes, never a text."""
    splits: dict[str, Any] = {}
    for split, rows in outcome.splits.items():
        labels = dict(sorted(outcome.labels[split].items()))
        without = labels.pop("", 0)
        splits[split] = {"rows": rows, "labels": labels, "without_label": without}
    return {
        "span": span,
        "version": version,
        "rows": outcome.rows,
        "splits": splits,
        "bad": {
            "rows": sum(outcome.bad.values()),
            "share": outcome.bad_share,
            "reasons": dict(outcome.bad.most_common()),
        },
        "leaked": [leak.to_json() for leak in outcome.leaks],
        "dropped": dict(outcome.dropped),
        "files": outcome.files,
    }


def write_results(ingestion: Ingestion, outcome: Outcome, report: dict[str, Any], folder: str) -> None:
    """Writes `ingest_report.json` and, if there are bad rows, `dead_letters.jsonl` (in file order) to `folder`."""
    with writing(FileSystems.join(folder, REPORT), ingestion.work) as stream:
        stream.write(json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    if not outcome.bad:
        return
    with writing(FileSystems.join(folder, DEAD_LETTERS), ingestion.work, private=True) as stream:
        for path in outcome.dead_letters:
            stream.write(read_bytes(path))


def keep_hashes(ingestion: Ingestion, outcome: Outcome) -> None:
    """Moves the files of hashes into the artifact: a window of spans is searched for shared texts by them."""
    folder = FileSystems.join(ingestion.output, HASHES)
    make_folder(folder)
    paths = [path for found in outcome.hashes.values() for path in found]
    FileSystems.rename(paths, [FileSystems.join(folder, FileSystems.split(path)[1]) for path in paths])


def _read_json(path: str) -> dict[str, Any]:
    return json.loads(read_bytes(path))
