"""`score IN OUT`: predictions for a file or folder of any size, by Beam, with a pushed version.

    OUT/
      part-000000.jsonl …   one shard an item, a range of some megabytes of the input; their order is the input's
      dead_letters.jsonl    rows that could not be read, as ingest has them (mode 0600); only if there are any
      manifest.json         written last: counts, version, input files and shards with sha256, files passed over
      .work/                while it runs: plan.json, and for each finished item a mark with its counts

A killed job is called again and goes on with the items that have no mark; the result is the same, byte for byte.
A row of output names file, line and id of its text and never holds the text. A row by row:

    {"file": "a.csv", "line": 2, "id": "7", "label": "METHODS", "probabilities": {"METHODS": 0.93, …}, "version": 176…}

with `labels`, a list, instead of `label` for a multilabel model. Parquet has the same columns, `probabilities` a list
in the order of `classes` in the schema's metadata. IN and OUT are local or mounted folders that every worker sees.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from components import beam_memo, errors, progress
from components.config import DataConfig
from components.errors import BusyError, DataError, PipelineError, ServingError
from components.examples.files import InputFile, Item, plan_file
from pipeline import inputs
from pipeline.predict import BATCH_SIZE
from pipeline.score_items import Job, ScoreItem, whole_file
from pipeline.versions import find_version

MANIFEST = "manifest.json"
DEAD_LETTERS = "dead_letters.jsonl"
# Small enough that little is lost by a kill, large enough that files do not pile up.
ITEM_BYTES = 1 << 20
IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")


def score(
    serving_dir: Path,
    source: Path,
    output: Path,
    data: DataConfig,
    *,
    version: int | None = None,
    format: Literal["jsonl", "parquet"] = "jsonl",
    beam_pipeline_args: Sequence[str] = IN_PROCESS,
    batch_size: int = BATCH_SIZE,
    item_bytes: int = ITEM_BYTES,
) -> dict[str, Any]:
    """Scores every row of `source` into shards under `output`; called again, goes on with what is missing.

    Args:
      serving_dir: the base path of the versions.
      source: a file, or a folder whose data files are read, those in sub-folders too.
      output: a folder that is new, empty, or of the same job. Not inside `source`.
      data: the configuration's, for the columns; labels are not read.
      version: None: the live one; a job that goes on stays with the version it began with.
      format: of the shards.
      beam_pipeline_args: as in the configuration; the default computes in this process on all cores.
      batch_size: most texts in one call of the model.
      item_bytes: input bytes of an item. Parquet is cut between row groups only.

    Returns:
      The content of manifest.json: `rows`, `bad`, `labels`, `classes`, `multilabel`, `version`, `format`, `files`,
      `skipped`, `shards`, `dead_letters`; and `seconds` and `resumed_items` of this call, and `output`.

    Raises:
      DataError: the input is missing, has not the columns, or changed. PushError: there is no such version.
      ServingError: the model failed. BusyError: another process is at work in `output`.
      PipelineError: `output` holds something else, or cannot be written.
    """
    began = time.monotonic()
    with _output_folder(source, output):
        files, skipped = inputs.find_files(source, data)
        earlier = _earlier(output)
        if version is None and earlier is not None:
            version = earlier["settings"]["version"]
        found = find_version(serving_dir, version)
        settings = {
            "version": found.number,
            "format": format,
            "batch_size": batch_size,
            "item_bytes": item_bytes,
            "data": data.model_dump(mode="json", include={"columns", "format", "neighbours", "max_characters"}),
        }
        plan = _plan(output, files, data, settings, earlier)
        if (output / MANIFEST).exists():
            manifest = _read(output / MANIFEST)
            resumed = len(manifest["shards"])
        else:
            many = any("multi_processing" in argument for argument in beam_pipeline_args)
            job = Job(str(output), str(found.path), found.number, format, data, batch_size, threads=1 if many else 0)
            items = [_item(files, facts) for facts in plan["items"]]
            missing = [(number, item) for number, item in enumerate(items) if not _finished(job, number)]
            resumed = len(items) - len(missing)
            with _reporting(job, len(items)):
                _run(job, missing, list(beam_pipeline_args))
            manifest = _finish(job, plan, len(items), skipped)
        shutil.rmtree(output / ".work", ignore_errors=True)
    seconds = round(time.monotonic() - began, 2)
    return {**manifest, "output": str(output), "resumed_items": resumed, "seconds": seconds}


@contextmanager
def _output_folder(source: Path, output: Path) -> Iterator[None]:
    """Makes the folder and holds it for one process."""
    import fcntl

    if output.absolute().is_relative_to(source.absolute()):
        raise DataError(f"{output}: lies inside the input {source}; give a folder elsewhere")
    try:
        if output.is_dir() and any(output.iterdir()) and not _ours(output):
            raise PipelineError(f"{output}: is not empty and holds no scoring job; give a new folder")
        (output / ".work").mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise PipelineError(f"{output}: cannot be written ({error.strerror}); give another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{output}: another process is scoring into this folder") from None
        yield


def _ours(output: Path) -> bool:
    return any((output / name).exists() for name in (".lock", ".work", MANIFEST))


def _earlier(output: Path) -> dict[str, Any] | None:
    """What the job in this folder was begun with."""
    for path in (output / MANIFEST, output / ".work" / "plan.json"):
        if path.exists():
            return _read(path)
    return None


def _plan(
    output: Path, files: list[InputFile], data: DataConfig, settings: dict[str, Any], earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """Settings, files and items; those of the job that is there already, if it is the same."""
    stats = [Path(file.path).stat() for file in files]
    seen = [
        {"file": file.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
        for file, stat in zip(files, stats, strict=True)
    ]
    if earlier is not None:
        for key, value in settings.items():
            if earlier["settings"].get(key) != value:
                raise PipelineError(
                    f"{output}: holds a job with another {key}"
                    + ("" if key == "data" else f" ({earlier['settings'].get(key)}, now {value})")
                    + "; give a new folder, or remove this one to begin anew"
                )
        known = [{key: file[key] for key in ("file", "bytes", "modified_ns")} for file in earlier["files"]]
        if known == seen:
            return earlier
    described, items = [], []
    for file, facts in zip(files, seen, strict=True):
        planned = plan_file(file, inputs.row_spec(file, data), settings["item_bytes"])
        described.append({**facts, "sha256": planned.sha256})
        items += [{**asdict(item), "file": file.index} for item in planned.items]
    if earlier is not None:
        if [(file["file"], file["sha256"]) for file in earlier["files"]] != [
            (file["file"], file["sha256"]) for file in described
        ]:
            raise DataError(
                f"{output}: its job was begun on other input files; give a new folder, or remove this one to begin anew"
            )
        return earlier
    plan = {"settings": settings, "files": described, "items": items}
    with whole_file(output / ".work" / "plan.json", output / ".work") as stream:
        stream.write(json.dumps(plan).encode())
    return plan


def _item(files: list[InputFile], facts: dict[str, Any]) -> Item:
    return Item(**{**facts, "file": files[facts["file"]], "columns": tuple(facts["columns"])})


def _finished(job: Job, number: int) -> bool:
    try:
        facts = _read(job.mark(number))
        return job.shard(number).stat().st_size == facts["bytes"]
    except (FileNotFoundError, ValueError):
        return False


def _run(job: Job, missing: list[tuple[int, Item]], arguments: list[str]) -> None:
    if not missing:
        return
    beam_memo.remember()
    try:
        with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            _ = (
                pipeline
                | "Items" >> beam.Create(missing, reshuffle=False)
                | "Spread" >> beam.Reshuffle()
                | "Score" >> beam.ParDo(ScoreItem(job))
            )
    except Exception as error:
        raise _explain(error, job) from error


def _explain(error: Exception, job: Job) -> PipelineError:
    """Our own error as it was raised in a worker, which hands back only words; any other by its kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PipelineError):
            return type(cause)(re.sub(r" \[while running '[^']*'\]$", "", str(cause)))
        if isinstance(cause, OSError) and cause.errno is not None:
            return PipelineError(f"{job.output}: {cause.strerror}; put that right and call again to go on")
        cause = cause.__cause__ or cause.__context__
    found = re.findall(r"^components\.errors\.(\w+): (.*?)(?: \[while running '[^']*'\])?$", str(error), re.MULTILINE)
    for kind, message in reversed(found):
        if isinstance(getattr(errors, kind, None), type):
            return getattr(errors, kind)(message)
    return ServingError(f"{job.output}: scoring failed ({type(error).__name__}); what is done is kept, call again")


def _finish(job: Job, plan: dict[str, Any], items: int, skipped: list[str]) -> dict[str, Any]:
    """Gathers the counts and dead letters of all items; writes the manifest, which ends the job."""
    marks = [_read(job.mark(number)) for number in range(items)]
    bad, labels = Counter[str](), Counter[str]()
    for mark in marks:
        bad.update(mark["bad"])
        labels.update(mark["labels"])
    output = Path(job.output)
    if bad:
        with whole_file(output / DEAD_LETTERS, job.work, private=True) as target:
            for number in range(items):
                if job.dead_letters(number).exists():
                    with job.dead_letters(number).open("rb") as part:
                        shutil.copyfileobj(part, target)
    manifest = {
        "rows": sum(mark["rows"] for mark in marks),
        "bad": {"rows": bad.total(), "reasons": dict(bad.most_common())},
        "labels": dict(sorted(labels.items())),
        "version": job.version,
        "format": job.format,
        "shards": [{key: mark[key] for key in ("shard", "rows", "bytes", "sha256")} for mark in marks],
        "dead_letters": DEAD_LETTERS if bad else None,
        "files": plan["files"],
        "skipped": skipped,
        "settings": plan["settings"],
    }
    with whole_file(output / MANIFEST, job.work) as stream:
        stream.write(json.dumps(manifest, indent=1).encode())
    return manifest


@contextmanager
def _reporting(job: Job, items: int) -> Iterator[None]:
    """Reports finished items and rows about once a second, whichever process finishes them."""
    stop = threading.Event()
    rows: dict[int, int] = {}

    def look() -> None:
        for number in range(items):
            if number not in rows and job.mark(number).exists():
                rows[number] = _read(job.mark(number))["rows"]
        progress.report("score", items=len(rows), of=items, rows=sum(rows.values()))

    def watch() -> None:
        while not stop.wait(max(1.0, items / 20_000)):
            look()

    thread = threading.Thread(target=watch, name="score-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
