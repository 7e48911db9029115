"""The versions in a model server's base path: which there are, back to an earlier one, and forth again.

A model server serves the newest number that it finds (TensorFlow Serving's `latest` policy, the default). A rollback
therefore moves the versions that are newer than the wanted one out of the server's sight, into `.rolled-back/`: at
its next look the server loads the wanted version and only then lets the other go, so that no request fails. The
version keeps its number, and with it its lineage and whatever clients, logs and metrics have recorded of it.
A run of the same inputs does not push what was rolled back again; only `restore` brings it back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from components.errors import PushError
from components.push import base_path


@dataclass(frozen=True)
class Version:
    """One version of the model.

    Attributes:
      number: its folder's name.
      path: its folder.
      state: `live` is what a server serves, `kept` is older, `rolled_back` is out of the server's sight.
      pushed_at: ISO 8601, UTC; None for a folder that this pipeline did not push.
      blessed: whether its gates held; None where no lineage says so.
      metrics: value by name.
      span: of its data.
      journal: what was done to it, oldest first.
    """

    number: int
    path: Path
    state: Literal["live", "kept", "rolled_back"]
    pushed_at: str | None = None
    blessed: bool | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    span: int | None = None
    journal: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "path": str(self.path), "journal": list(self.journal)}


def list_versions(serving_dir: Path) -> list[Version]:
    """All versions, those that were rolled back included, newest first."""
    journal = base_path.read_journal(serving_dir)
    published = base_path.published(serving_dir)
    live = max(published, default=None)
    found = [_describe(n, path, "live" if n == live else "kept", journal) for n, path in published.items()]
    found += [_describe(n, path, "rolled_back", journal) for n, path in base_path.rolled_back(serving_dir).items()]
    return sorted(found, key=lambda version: version.number, reverse=True)


def find_version(serving_dir: Path, number: int | None = None) -> Version:
    """A version that a server can serve: the live one, or the one of that number.

    Raises:
      PushError: there is none; the message names those that there are.
    """
    known = [version for version in list_versions(serving_dir) if version.state != "rolled_back"]
    if not known:
        raise PushError(f"{serving_dir}: no version has been pushed yet; `biobert-cnn run CONFIG` makes one")
    if number is None:
        return known[0]
    for version in known:
        if version.number == number:
            return version
    raise PushError(f"{serving_dir}: there is no version {number}; there are {_numbers(known)}")


def is_settled(serving_dir: Path, number: int) -> bool:
    """Whether a run that made this version has nothing left to do: it is live, or was rolled back on purpose.

    False for a version that another has replaced, or whose folder is gone: the run's model is to be pushed again.
    """
    published = base_path.published(serving_dir)
    if number in published:
        return number == max(published)
    if number in base_path.rolled_back(serving_dir):
        return True
    events = [entry["event"] for entry in base_path.read_journal(serving_dir) if entry.get("version") == number]
    return "rollback" in events and "restore" not in events[events.index("rollback") :]


def rollback(serving_dir: Path, version: int | None = None, *, reason: str = "", timeout_s: float | None = None) -> int:
    """Makes an earlier blessed version the live one; newer ones leave the base path and are kept for `restore`.

    Killed half-way, the version that was live still is, and the same call again completes the rollback.

    Args:
      serving_dir: the base path.
      version: which; None: the newest blessed one before the live version.
      reason: for the journal; who and when are added.
      timeout_s: how long to wait for a push that is under way; None: ten minutes.

    Returns:
      The number of the version that is live now.

    Raises:
      PushError: there is no such version, or it is not known to be blessed; the message names the possible ones.
    """
    _require(serving_dir)
    with base_path.locked(serving_dir, timeout_s or base_path.LOCK_TIMEOUT_S):
        known = list_versions(serving_dir)
        current = next((v for v in known if v.state == "live"), None)
        if current is None:
            raise PushError(f"{serving_dir}: no version is live; `restore` can bring back {_numbers(known)}")
        target = _rollback_target(serving_dir, known, current, version)
        newer = sorted(
            (v for v in known if v.state != "rolled_back" and v.number > target.number), key=lambda v: v.number
        )
        folder = serving_dir / base_path.ROLLED_BACK
        try:
            folder.mkdir(exist_ok=True)
            # The live version last: until that rename the server sees no change, then at once the whole of it.
            for item in newer:
                facts = base_path.read_lineage(item.path) or {}
                base_path.write_journal(
                    serving_dir, "rollback", item.number, reason, to=target.number,
                    model=facts.get("model", {}).get("sha256"), fingerprint=facts.get("run", {}).get("fingerprint"),
                )  # fmt: skip
                item.path.rename(folder / item.path.name)
            base_path.sync_folder(folder)
            base_path.sync_folder(serving_dir)
        except OSError as error:
            raise PushError(
                f"{serving_dir}: version {current.number} could not be taken back ({error.strerror}: "
                f"{error.filename}); call again when that is put right"
            ) from error
    return target.number


def restore(serving_dir: Path, version: int | None = None, *, reason: str = "", timeout_s: float | None = None) -> int:
    """Brings a version that was rolled back into the base path again; live if no newer one has been pushed since.

    Args:
      version: which; None: the newest of those that were rolled back.

    Returns:
      The number of the restored version.

    Raises:
      PushError: there is none, or not that one; the message names those that there are.
    """
    _require(serving_dir)
    with base_path.locked(serving_dir, timeout_s or base_path.LOCK_TIMEOUT_S):
        kept = base_path.rolled_back(serving_dir)
        if not kept:
            raise PushError(f"{serving_dir}: no version is rolled back, so there is nothing to restore")
        number = max(kept) if version is None else version
        if number not in kept:
            raise PushError(f"{serving_dir}: version {number} is not rolled back; those that are: {_join(kept)}")
        try:
            base_path.write_journal(serving_dir, "restore", number, reason)
            kept[number].rename(serving_dir / kept[number].name)
            base_path.sync_folder(serving_dir)
        except OSError as error:
            raise PushError(
                f"{serving_dir}: version {number} could not be restored ({error.strerror}: {error.filename})"
            ) from error
    return number


def _rollback_target(serving_dir: Path, known: list[Version], current: Version, number: int | None) -> Version:
    earlier = [v for v in known if v.state == "kept"]
    blessed = [v for v in earlier if v.blessed]
    possible = f"blessed versions to go back to: {_numbers(blessed)}"
    if number is None:
        if not blessed:
            raise PushError(
                f"{serving_dir}: there is no blessed version before {current.number} to go back to; "
                "serving.keep_versions says how many are kept"
            )
        return blessed[0]
    if number == current.number:
        raise PushError(f"{serving_dir}: version {number} is the live one; {possible}")
    for version in earlier:
        if version.number == number:
            if not version.blessed:
                raise PushError(f"{serving_dir}: version {number} is not known to be blessed; {possible}")
            return version
    if number in base_path.rolled_back(serving_dir):
        raise PushError(f"{serving_dir}: version {number} was itself rolled back; `restore` brings it back; {possible}")
    raise PushError(f"{serving_dir}: there is no version {number}; {possible}")


def _describe(number: int, path: Path, state: Any, journal: list[dict[str, Any]]) -> Version:
    lineage = base_path.read_lineage(path) or {}
    metrics = {name: facts["value"] for name, facts in (lineage.get("metrics") or {}).items() if facts is not None}
    return Version(
        number=number,
        path=path,
        state=state,
        pushed_at=lineage.get("pushed_at"),
        blessed=lineage.get("blessed"),
        metrics=metrics,
        span=(lineage.get("data") or {}).get("span"),
        journal=tuple(entry for entry in journal if entry.get("version") == number),
    )


def _require(serving_dir: Path) -> None:
    if not serving_dir.is_dir():
        raise PushError(f"{serving_dir}: no version has been pushed yet; `biobert-cnn run CONFIG` makes one")


def _numbers(versions: list[Version]) -> str:
    return _join(version.number for version in versions)


def _join(numbers: Any) -> str:
    return ", ".join(str(number) for number in sorted(numbers)) or "none"
