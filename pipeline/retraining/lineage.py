"""From a version to what it was made of, and from a span to every model that has seen it.

Read from the lineage of versions (`assets.extra/lineage.json`), those that were rolled back or removed included, from
the journal of the base path and from the runs' records, so that versions long removed are known too.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import PushError
from components.push import base_path
from pipeline import records
from pipeline.config import Config


def of_version(config: Config, number: int | None = None) -> dict[str, Any]:
    """What is known of a version (None: the live one).

    Returns:
      `version`, `state` (live, kept, rolled_back, removed), `spans`, `files`, `revision` and `code` (of the source
      tree), `configuration`, `warm_start`, `metrics`, `gates`, `artifacts`, `software`, `model`, `pushed_at`,
      `blessed`, `journal` and `run` (the id of its record).

    Raises:
      PushError: there is no such version and never was.
    """
    everything = _versions(config.serving_dir)
    journal = base_path.read_journal(config.serving_dir)
    record = _record_of(config.root, number)
    published = base_path.published(config.serving_dir)
    if number is None:
        if not published:
            raise PushError(f"{config.serving_dir}: no version has been pushed yet")
        number = max(published)
        record = _record_of(config.root, number)
    path, state = everything.get(number, (None, "removed"))
    entries = [entry for entry in journal if entry.get("version") == number]
    folder = path or base_path.removed(config.serving_dir).get(number)
    lineage = (base_path.read_lineage(folder) if folder is not None else None) or {}
    if folder is None and not entries and record is None:
        known = ", ".join(str(found) for found in sorted(everything)) or "none"
        raise PushError(f"{config.serving_dir}: there is no version {number}; those that there are: {known}")
    data = lineage.get("data") or (record or {}).get("data") or {}
    run = lineage.get("run") or {}
    return {
        "version": number,
        "state": state,
        "path": None if path is None else str(path),
        "pushed_at": lineage.get("pushed_at"),
        "blessed": lineage.get("blessed"),
        "spans": spans_of(data),
        "files": data.get("files") or [],
        "rows": data.get("rows"),
        "revision": run.get("revision"),
        "code": run.get("code"),
        "fingerprint": run.get("fingerprint") or (record or {}).get("fingerprint"),
        "configuration": run.get("configuration"),
        "metrics": lineage.get("metrics") or (record or {}).get("metrics") or {},
        "gates": lineage.get("gates") or (record or {}).get("gates") or [],
        "model": (lineage.get("model") or {}).get("sha256"),
        "artifacts": lineage.get("artifacts") or {},
        "software": lineage.get("software") or {},
        "warm_start": (lineage.get("training") or (record or {}).get("training") or {}).get("warm_start"),
        "run": None if record is None else record["run_id"],
        "trigger": None if record is None else record.get("trigger"),
        "rolled_back": None if record is None else record.get("rolled_back"),
        "journal": entries,
    }


@dataclass(eq=False)
class _Model:
    """What a span may have gone into: a version, or a model that a gate or the serving check refused."""

    version: int | None
    state: str
    run: str | None
    data: dict[str, Any]
    uri: str | None  # of its artifact
    source: str | None  # the artifact whose weights it started from

    def started_from(self, other: _Model) -> bool:
        return None not in (self.source, other.uri) and f"{self.source}/".startswith(f"{other.uri}/")


def of_span(config: Config, span: int) -> list[dict[str, Any]]:
    """Every model that has seen a span: its own data held it, or it started from the weights of one that has seen it.

    Returns:
      Versions, the oldest first, then the refused models of runs, the oldest first: `version` (None: refused), `state`
      (as in `of_version`, or refused), `run`, `files` (the span's, with their hashes; empty where its own data did not
      hold the span) and `started_from` (the versions that it has it from).
    """
    models = _models(config)
    direct = [model for model in models if span in spans_of(model.data)]
    seen = list(direct)
    while new := [m for m in models if m not in seen and any(m.started_from(base) for base in seen)]:
        seen += new
    return [
        {
            "version": model.version,
            "state": model.state,
            "run": model.run,
            "files": [
                file for file in model.data.get("files") or []
                if model in direct and file.get("span", span) == span
            ],
            "started_from": [base.version for base in seen if model.started_from(base)],
        }
        for model in models
        if model in seen
    ]  # fmt: skip


def _models(config: Config) -> list[_Model]:
    """Versions from their lineage and from records; refused models from the records alone."""
    found: dict[int, _Model] = {}
    refused = []
    for record in records.read_records(config.root):
        version = record.get("version")
        source = _source(record)
        model = _Model(version, "removed", record["run_id"], record.get("data") or {}, record.get("model"), source)
        if isinstance(version, int):
            found[version] = model
        elif record.get("status") == "not_blessed":
            refused.append(replace(model, version=None, state="refused"))
    removed = {number: (path, "removed") for number, path in base_path.removed(config.serving_dir).items()}
    for number, (path, state) in (removed | _versions(config.serving_dir)).items():
        lineage = base_path.read_lineage(path) or {}
        known = found.get(number) or _Model(number, state, None, {}, None, None)
        uri = ((lineage.get("artifacts") or {}).get("model") or {}).get("uri") or known.uri
        data = lineage.get("data") or known.data
        found[number] = replace(known, state=state, data=data, uri=uri, source=_source(lineage) or known.source)
    return [found[number] for number in sorted(found)] + refused


def _source(facts: dict[str, Any]) -> str | None:
    """Of a lineage or a record: the model that the training started from."""
    return ((facts.get("training") or {}).get("warm_start") or {}).get("source")


def spans_of(data: dict[str, Any]) -> list[int]:
    """The spans of an ingest report, or of several put together."""
    if data.get("spans"):
        return [entry["span"] if isinstance(entry, dict) else int(entry) for entry in data["spans"]]
    return [] if data.get("span") is None else [int(data["span"])]


def print_version(found: dict[str, Any], as_json: bool) -> None:
    """Prints `of_version`."""
    if as_json:
        print(json.dumps(found))
        return
    from pipeline.console import report_console

    console = report_console()
    console.print(f"version {found['version']}  {found['state']}  pushed {found['pushed_at'] or 'at an unknown time'}")
    for name in ("path", "run", "trigger", "rolled_back", "revision", "code", "fingerprint", "model"):
        if found[name]:
            console.print(f"  {name:<12} {found[name]}")
    source = (found["warm_start"] or {}).get("source")
    console.print(f"  {'warm start':<12} {source or 'none'}")
    console.print(f"  {'spans':<12} {', '.join(map(str, found['spans'])) or 'unknown'}")
    for file in found["files"]:
        console.print(f"  {file.get('sha256')}  {file.get('split', '')}  {file.get('file')}")
    for name, facts in sorted(found["metrics"].items()):
        console.print(f"  {name:<20} {facts['value']:.4f}" if facts else f"  {name:<20} –")
    for gate in found["gates"]:
        console.print(f"  {'held' if gate['passed'] else 'BROKEN':<8} {gate['gate']}  value {gate['value']}")
    for entry in found["journal"]:
        console.print(f"  {entry['at']}  {entry['event']}  by {entry['by']}  {entry['reason']}")
    if found["configuration"]:
        console.print("  configuration")
        console.print(textwrap.indent(json.dumps(found["configuration"], indent=2), "    "))


def print_span(span: int, found: list[dict[str, Any]], as_json: bool) -> None:
    """Prints `of_span`."""
    if as_json:
        print(json.dumps({"span": span, "versions": found}))
        return
    if not found:
        print(f"no model has seen span {span}")
    for entry in found:
        parts = ["no version" if entry["version"] is None else f"version {entry['version']}", entry["state"]]
        parts.append(f"run {entry['run'] or 'unknown'}")
        hashes = ", ".join(f"{file.get('file')} {str(file.get('sha256'))[:12]}" for file in entry["files"])
        started = [f"started from version {number}" for number in entry["started_from"]]
        print("  ".join(filter(None, [*parts, hashes, *started])))


def _versions(serving_dir: Path) -> dict[int, tuple[Path, str]]:
    published = base_path.published(serving_dir)
    found = {n: (path, "rolled_back") for n, path in base_path.rolled_back(serving_dir).items()}
    live = max(published, default=None)
    found.update({n: (path, "live" if n == live else "kept") for n, path in published.items()})
    return found


def _record_of(root: Path, number: int | None) -> dict[str, Any] | None:
    if number is None:
        return None
    return next((record for record in reversed(records.read_records(root)) if record.get("version") == number), None)
