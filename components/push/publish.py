"""A SavedModel becomes a version in the base path of a model server: complete or absent, whatever is killed when."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import PushError
from components.push import base_path

_log = logging.getLogger(__name__)
_CHUNK = 8 << 20
# Beside the weights and the graph; not part of what makes two models the same.
_UNESSENTIAL = ("assets.extra/", "fingerprint.pb")
_GRAPH = "saved_model.pb"


@dataclass(frozen=True)
class Published:
    """What became of a push.

    Attributes:
      version: its number; None when the model was taken back earlier and stays away.
      path: its folder, or None.
      new: whether this push made it; False when the same model is live already.
      reason: why nothing new was published, or "".
    """

    version: int | None
    path: Path | None
    new: bool
    reason: str = ""


def list_files(source: Path) -> dict[str, dict[str, Any]]:
    """Relative path → `bytes` and `sha256` of every file under `source`, sorted by path.

    Raises:
      PushError: it is not a SavedModel.
    """
    if not (source / _GRAPH).is_file():
        raise PushError(f"{source}: is not a SavedModel (there is no {_GRAPH}); run the trainer again")
    files = {}
    for path in sorted(source.rglob("*")):
        if path.is_file():
            files[path.relative_to(source).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return files


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(files: dict[str, dict[str, Any]], graph: str) -> str:
    """sha256 of a model's graph, weights and assets, so that the same model is known again under another name.

    Args:
      files: of `list_files`.
      graph: the digest of the graph.
    """
    digest = hashlib.sha256(graph.encode())
    for name in sorted(files):
        if name != _GRAPH and not name.startswith(_UNESSENTIAL):
            digest.update(f"{name} {files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def publish(
    source: Path,
    serving_dir: Path,
    keep_versions: int,
    lineage: Callable[[int], dict[str, Any]],
    fingerprint: str = "",
    clock: Callable[[], float] = time.time,
    graph_digest: Callable[[Path], str] = file_digest,
) -> Published:
    """Publishes `source` as the newest version, unless it is live already or was rolled back.

    Args:
      source: the folder of a SavedModel; only read.
      serving_dir: the base path; made if it is not there.
      keep_versions: how many versions stay, the new one included. Folders that this pipeline did not push stay too.
      lineage: called with the version's number; what it returns is written to `assets.extra/lineage.json`.
      fingerprint: of the run, if known: a second run of the same inputs does not bring back what was rolled back.
      clock: seconds since 1970.
      graph_digest: of `saved_model.pb`: what makes two graphs the same; by itself their bytes, which two exports of one
        model do not share (see `components.push.graph`).

    Raises:
      PushError: the disk is full or cannot be written, or the source changed meanwhile; nothing new is there.
    """
    files = list_files(source)
    digest = model_digest(files, graph_digest(source / _GRAPH))
    with base_path.locked(serving_dir):
        try:
            base_path.clear_staging(serving_dir)
            taken_back = _taken_back(serving_dir, digest, fingerprint)
            if taken_back is not None:
                reason = (
                    f"this model is version {taken_back}, which was rolled back; "
                    "`restore` brings it back, a changed configuration or new data makes another"
                )
                return Published(None, None, False, reason)
            live = _live_copy(serving_dir, digest)
            if live is not None:
                result = Published(
                    live, base_path.published(serving_dir)[live], False, "the same model is live already"
                )
            else:
                number = base_path.next_number(serving_dir, clock())
                target = _copy(source, serving_dir, number, files, digest, lineage)
                result = Published(number, target, True)
        except OSError as error:
            raise _explain(error, serving_dir) from error
        try:  # The version is out: what fails from here on is no reason to call it a failure.
            if result.new:
                base_path.write_journal(serving_dir, "push", number, model=digest, fingerprint=fingerprint)
            _prune(serving_dir, keep_versions)
        except OSError as error:
            _log.warning("%s: pushed, but old versions or the journal could not be kept up: %s", serving_dir, error)
    return result


def _copy(
    source: Path,
    serving_dir: Path,
    number: int,
    files: dict[str, dict[str, Any]],
    digest: str,
    lineage: Callable[[int], dict[str, Any]],
) -> Path:
    """Copies into the staging folder, down to the disk, and renames: the one moment at which the version appears."""
    _check_space(serving_dir, sum(facts["bytes"] for facts in files.values()))
    draft = base_path.staging_folder(serving_dir) / f"{number}.{os.getpid()}"
    draft.mkdir()
    try:
        for name, facts in files.items():
            _copy_file(source / name, draft / name, facts["sha256"])
        facts = {**lineage(number), "version": number, "pushed_at": base_path.timestamp()}
        facts["model"] = {**facts.get("model", {}), "sha256": digest, "files": files}
        _write_file(draft / base_path.LINEAGE, json.dumps(facts, indent=2).encode())
        for folder in [path for path in draft.rglob("*") if path.is_dir()]:
            base_path.sync_folder(folder)
        base_path.sync_folder(draft)
        target = serving_dir / str(number)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    base_path.sync_folder(serving_dir)
    return target


def _copy_file(source: Path, target: Path, sha256: str) -> None:
    digest = hashlib.sha256()

    def chunks() -> Iterable[bytes]:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                yield chunk

    _write_file(target, chunks())
    if digest.hexdigest() != sha256:
        raise PushError(f"{source}: changed while it was being copied; run again when nothing else writes there")


def _write_file(target: Path, content: bytes | Iterable[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Ordinary modes, not those of a private temporary file: a model server may run as another user.
    with target.open("xb") as file:
        for chunk in [content] if isinstance(content, bytes) else content:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _check_space(serving_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(serving_dir).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, os.strerror(errno.ENOSPC), f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} free"
        )


def _taken_back(serving_dir: Path, digest: str, fingerprint: str) -> int | None:
    """The version that is this very model, or of this very run, if it was rolled back and not restored since."""
    state: dict[int, dict[str, Any]] = {}
    for entry in base_path.read_journal(serving_dir):
        if entry.get("event") in ("rollback", "restore") and isinstance(entry.get("version"), int):
            state[entry["version"]] = entry
    for number, path in base_path.rolled_back(serving_dir).items():
        state[number] = {"event": "rollback", **facts_of(path)}
    for number in sorted(set(state) - set(base_path.published(serving_dir)), reverse=True):
        entry = state[number]
        same_run = bool(fingerprint) and entry.get("fingerprint") == fingerprint
        if entry["event"] == "rollback" and (entry.get("model") == digest or same_run):
            return number
    return None


def facts_of(version: Path) -> dict[str, Any]:
    """`model` (digest) and `fingerprint` (of the run) of a version; None where its lineage is missing."""
    lineage = base_path.read_lineage(version) or {}
    return {
        "model": lineage.get("model", {}).get("sha256"),
        "fingerprint": lineage.get("run", {}).get("fingerprint"),
    }


def _live_copy(serving_dir: Path, digest: str) -> int | None:
    """The live version, if it is this very model and all its files are there."""
    versions = base_path.published(serving_dir)
    if not versions:
        return None
    number, path = list(versions.items())[-1]
    model = (base_path.read_lineage(path) or {}).get("model", {})
    if model.get("sha256") != digest:
        return None
    whole = all(
        (path / name).is_file() and (path / name).stat().st_size == facts["bytes"]
        for name, facts in model.get("files", {}).items()
    )
    return number if whole else None


def _prune(serving_dir: Path, keep: int) -> None:
    """Removes versions beyond the last `keep`, never the live one, and as many of those that were rolled back.

    Their lineage stays.
    """
    for versions in (base_path.published(serving_dir), base_path.rolled_back(serving_dir)):
        ours = [path for path in versions.values() if base_path.read_lineage(path) is not None]
        for path in ours[: max(len(ours) - max(keep, 1), 0)]:
            _keep_lineage(serving_dir, path)
            base_path.remove(serving_dir, path)
            base_path.write_journal(serving_dir, "remove", int(path.name), f"the last {keep} are kept")


def _keep_lineage(serving_dir: Path, version: Path) -> None:
    """What a version was made of outlives its folder."""
    target = serving_dir / base_path.REMOVED / version.name
    if target.exists():  # a push was killed before it removed the version
        return
    draft = base_path.staging_folder(serving_dir) / f"{version.name}.lineage.{os.getpid()}"
    _write_file(draft / base_path.LINEAGE, (version / base_path.LINEAGE).read_bytes())
    target.parent.mkdir(exist_ok=True)
    draft.rename(target)


def _explain(error: OSError, serving_dir: Path) -> PushError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        detail = f" ({error.filename})" if isinstance(error.filename, str) and "MiB" in error.filename else ""
        return PushError(
            f"{serving_dir}: the disk is full{detail}; nothing was pushed. Free some space, or lower "
            "serving.keep_versions, and run again"
        )
    return PushError(
        f"{serving_dir}: the version could not be written ({error.strerror}: {error.filename}); nothing was pushed"
    )
