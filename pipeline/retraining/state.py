"""What a schedule must remember over a crash: one SQLite database, `<root>/schedule.sqlite`.

Each method is one transaction, on disk when it returns, so that a process killed at any moment leaves the state as it
was before or after it. A trigger is a primary key: it can be recorded once, whoever tries.

    runs           one row a run: started (→ retry → started …) (→ watching)
                   → pushed | unchanged | refused | failed | rolled_back
    triggers       what has been answered, by which run; or why no run answers it
    measurements   the latest of each kind
    outbox         notifications that have not been delivered yet
    decisions      each change of the decision, with its reason
    facts          since when cron counts, the newest span that was handled
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import PipelineError
from pipeline.retraining.decision import Decision, Measurement, OpenRun, Span, span_of

FILE = "schedule.sqlite"
_VERSION = 1
_KEEP_DECISIONS = 2000
_SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
  id INTEGER PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, newest INTEGER, exclude TEXT NOT NULL,
  attempts INTEGER NOT NULL, started_at TEXT NOT NULL, ended_at TEXT, not_before TEXT, last_record TEXT NOT NULL,
  result TEXT
);
CREATE TABLE triggers (
  id TEXT PRIMARY KEY, at TEXT NOT NULL, run INTEGER REFERENCES runs (id), position INTEGER NOT NULL, note TEXT
);
CREATE TABLE measurements (rule TEXT, what TEXT, at TEXT, live INTEGER, evidence TEXT, value REAL,
  PRIMARY KEY (rule, what));
CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, event TEXT NOT NULL, body TEXT NOT NULL,
  failures INTEGER NOT NULL DEFAULT 0, not_before TEXT);
CREATE TABLE decisions (id INTEGER PRIMARY KEY, at TEXT NOT NULL, run INTEGER NOT NULL, reason TEXT NOT NULL);
"""
OPEN = ("started", "retry", "watching")


@dataclass(frozen=True)
class Run:
    """A row of `runs`; `key` is its first trigger, by which the run's record names it."""

    id: int
    key: str
    status: str
    reason: str
    newest: int | None
    exclude: tuple[int, ...]
    attempts: int
    started_at: dt.datetime
    ended_at: dt.datetime | None
    not_before: dt.datetime | None
    last_record: str
    result: dict[str, Any] | None
    triggers: tuple[str, ...]


class State:
    """The database of one pipeline root.

    Raises (every method):
      PipelineError: it cannot be written or read, or another process holds it for longer than `timeout_s`.
    """

    def __init__(self, root: Path, timeout_s: float = 30.0) -> None:
        """Opens it, and makes it where there is none."""
        self.path = root / FILE
        with self._explained():
            root.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous = FULL")
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                self._make()
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found != _VERSION:
                raise PipelineError(
                    f"{self.path}: is of version {found}, this program writes {_VERSION}; use the program that made it"
                )

    def _make(self) -> None:
        with self._transaction():
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Closes it."""
        self._db.close()

    # === What a decision needs ===

    def first_look(self, now: dt.datetime, known: Iterable[Span]) -> bool:
        """Notes when the schedule first looked and what was there before; False where that is done already."""
        with self._transaction():
            if self._fact("cron_since") is not None:
                return False
            self._set("cron_since", _text(now))
            for span in known:
                self._trigger(span.trigger, now, None, "was there before the schedule's first look")
                self._handled(span.number)
        return True

    def cron_since(self) -> dt.datetime | None:
        """Due times up to here are over; None before the first look."""
        with self._explained():
            value = self._fact("cron_since")
        return None if value is None else _time(value)

    def clock_is(self, now: dt.datetime) -> None:
        """Lowers `cron_since` when the clock was set back, so that nothing waits until it has caught up."""
        since = self.cron_since()
        if since is not None and now < since:
            with self._transaction():
                self._set("cron_since", _text(now))

    def handled(self) -> frozenset[str]:
        """Every trigger that was ever recorded and is not to be answered anew."""
        with self._explained():
            return frozenset(row[0] for row in self._db.execute("SELECT id FROM triggers WHERE note IS NOT 'suspect'"))

    def refused(self) -> frozenset[str]:
        """The triggers of spans whose data was refused."""
        with self._explained():
            return frozenset(row[0] for row in self._db.execute("SELECT id FROM triggers WHERE note = 'refused data'"))

    def suspects(self) -> frozenset[str]:
        """The triggers of spans one of which is to blame for data that was refused as a whole."""
        with self._explained():
            return frozenset(row[0] for row in self._db.execute("SELECT id FROM triggers WHERE note = 'suspect'"))

    def newest_handled(self) -> int | None:
        """The greatest number of a span that a run was started on, or that was there before."""
        with self._explained():
            value = self._fact("newest_handled")
        return None if value is None else int(value)

    def open_run(self) -> Run | None:
        """The run that was started and has not ended."""
        with self._explained():
            row = self._db.execute("SELECT * FROM runs WHERE status IN (?, ?, ?) ORDER BY id LIMIT 1", OPEN).fetchone()
            return None if row is None else self._run(row)

    def runs(self, limit: int = 1000) -> list[Run]:
        """The latest runs, newest first."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM runs ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
            return [self._run(row) for row in rows]

    def measurements(self) -> tuple[Measurement, ...]:
        """The latest of each rule and feature."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM measurements").fetchall()
        return tuple(Measurement(row["rule"], row["live"], row["evidence"], row["value"], row["what"]) for row in rows)

    def measured_at(self) -> tuple[dt.datetime | None, str | None]:
        """When it was last tried to measure, and what all of it was last measured on."""
        with self._explained():
            value, evidence = self._fact("measured_at"), self._fact("measured_on")
        return None if value is None else _time(value), evidence

    # === What happens ===

    def start(self, decision: Decision, now: dt.datetime, last_record: str) -> Run | None:
        """Records the triggers of a run and the run itself, before it starts; None if one is recorded already.

        Args:
          decision: to run, on triggers (not to go on with an open run).
          now: the time.
          last_record: id of the newest record of a run; the run's own will be newer.
        """
        try:
            with self._transaction():
                cursor = self._db.execute(
                    "INSERT INTO runs (status, reason, newest, exclude, attempts, started_at, last_record) "
                    "VALUES ('started', ?, ?, ?, 1, ?, ?)",
                    (decision.reason, decision.newest, json.dumps(decision.exclude), _text(now), last_record),
                )
                number = int(cursor.lastrowid or 0)
                for position, trigger in enumerate(decision.triggers):
                    self._trigger(trigger, now, number, None, position)
                self._skip(decision.skipped, now)
                # Only as far as what is answered: a due time whose jitter has not passed yet is still to come.
                for trigger in decision.triggers:
                    if trigger.startswith("cron:"):
                        self._set("cron_since", trigger.removeprefix("cron:"))
                if decision.newest is not None:
                    self._handled(decision.newest)
        except sqlite3.IntegrityError:
            return None
        return self.get(number)

    def get(self, number: int) -> Run:
        """The run of that number."""
        with self._explained():
            return self._run(self._db.execute("SELECT * FROM runs WHERE id = ?", (number,)).fetchone())

    def skip(self, skipped: Sequence[tuple[str, str]], now: dt.datetime) -> None:
        """Records triggers that no run will answer, with the reason."""
        if skipped:
            with self._transaction():
                self._skip(skipped, now)

    def attempt(self, run: Run, last_record: str) -> Run:
        """Counts another attempt at an open run."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET status = 'started', attempts = attempts + 1, not_before = NULL, last_record = ? "
                "WHERE id = ?", (last_record, run.id),
            )  # fmt: skip
        return self.get(run.id)

    def note(self, run: Run, facts: dict[str, Any]) -> Run:
        """Keeps facts with the result of a run that is open."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET result = ? WHERE id = ?", (json.dumps({**(run.result or {}), **facts}), run.id)
            )
        return self.get(run.id)

    def retry(self, run: Run, not_before: dt.datetime, result: dict[str, Any]) -> None:
        """The attempt failed; another follows, not before that time."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET status = 'retry', not_before = ?, result = ? WHERE id = ?",
                (_text(not_before), json.dumps(result), run.id),
            )

    def watching(self, run: Run, result: dict[str, Any]) -> None:
        """The run has pushed a version that is now watched."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET status = 'watching', result = ? WHERE id = ?", (json.dumps(result), run.id)
            )

    def reopen(self, run: Run) -> Run:
        """Gives a run that failed for good all its attempts again."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET status = 'started', attempts = 0, ended_at = NULL, not_before = NULL WHERE id = ?",
                (run.id,),
            )
        return self.get(run.id)

    def settle(
        self, run: Run, status: str, now: dt.datetime, result: dict[str, Any],
        events: Sequence[tuple[str, dict[str, Any]]] = (), refused: Sequence[str] = (), released: Sequence[str] = (),
        suspects: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """The run has ended; its notifications are queued in the same transaction, so that none is lost or doubled.

        Args:
          refused: the triggers of spans whose data was refused; not always its own.
          released: the triggers among its own that another run is to answer.
          suspects: those of them that runs of their own are to answer.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET status = ?, ended_at = ?, not_before = NULL, result = ? WHERE id = ?",
                (status, _text(now), json.dumps(result), run.id),
            )
            self._db.executemany(
                "UPDATE triggers SET note = 'refused data' WHERE id = ?", [(item,) for item in refused]
            )
            for trigger in released:
                self._release(trigger, run)
            for trigger in suspects:
                self._trigger(trigger, now, None, "suspect")
            self._queue(events, now)

    def readmit(self, span: int) -> bool:
        """Forgets that the data of a span was refused, so that the span is new again; False where it was not."""
        with self._transaction():
            cursor = self._db.execute(
                "DELETE FROM triggers WHERE note = 'refused data' AND (id GLOB ? OR id GLOB ?)",
                (f"span:{span}.*", f"span:{span}:*"),
            )
        return cursor.rowcount > 0

    def measured(
        self, found: Iterable[Measurement], now: dt.datetime, evidence: str | None,
        events: Sequence[tuple[str, dict[str, Any]]] = (),
    ) -> None:  # fmt: skip
        """Keeps measurements in place of earlier ones of the same rule and feature.

        Args:
          evidence: what they are of; None: something is still to be measured on it.
        """
        with self._transaction():
            for item in found:
                self._db.execute(
                    "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?)",
                    (item.rule, item.what, _text(now), item.live, item.evidence, item.value),
                )
            self._set("measured_at", _text(now))
            self._set("measured_on", evidence or "")
            self._queue(events, now)

    def decided(self, decision: Decision, now: dt.datetime) -> bool:
        """Keeps the decision if it differs from the one before; returns whether it does."""
        with self._transaction():
            last = self._db.execute("SELECT run, reason FROM decisions ORDER BY id DESC LIMIT 1").fetchone()
            if last is not None and (bool(last["run"]), last["reason"]) == (decision.run, decision.reason):
                return False
            cursor = self._db.execute(
                "INSERT INTO decisions (at, run, reason) VALUES (?, ?, ?)",
                (_text(now), decision.run, decision.reason),
            )
            self._db.execute("DELETE FROM decisions WHERE id <= ?", (int(cursor.lastrowid or 0) - _KEEP_DECISIONS,))
        return True

    def decisions(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest changes of the decision, newest first."""
        with self._explained():
            rows = self._db.execute("SELECT at, run, reason FROM decisions ORDER BY id DESC LIMIT ?", (limit,))
            return [{"at": row["at"], "run": bool(row["run"]), "reason": row["reason"]} for row in rows]

    def last_run_decision(self) -> dict[str, Any] | None:
        """The latest decision to run, as in `decisions`; None where there was none, or it is long past."""
        with self._explained():
            row = self._db.execute("SELECT at, reason FROM decisions WHERE run ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else {"at": row["at"], "run": True, "reason": row["reason"]}

    def skips(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest triggers that no run answers, newest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT id, at, note FROM triggers WHERE run IS NULL AND note != 'suspect' "
                "ORDER BY at DESC, id LIMIT ?", (limit,),
            )  # fmt: skip
            return [{"trigger": row["id"], "at": row["at"], "reason": row["note"]} for row in rows]

    # === Notifications ===

    def queue(self, events: Sequence[tuple[str, dict[str, Any]]], now: dt.datetime) -> None:
        """Queues notifications: event and body each."""
        with self._transaction():
            self._queue(events, now)

    def outbox(self) -> list[tuple[int, str, dict[str, Any], int, dt.datetime | None]]:
        """Number, event, body, failures so far and the time of the next attempt of each that is to be delivered."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM outbox ORDER BY id").fetchall()
        return [
            (row["id"], row["event"], json.loads(row["body"]), row["failures"],
             None if row["not_before"] is None else _time(row["not_before"]))
            for row in rows
        ]  # fmt: skip

    def delivered(self, number: int) -> None:
        """Takes a notification out of the queue."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE id = ?", (number,))

    def undelivered(self, number: int, not_before: dt.datetime) -> None:
        """Counts a failure; the next attempt not before that time."""
        with self._transaction():
            self._db.execute(
                "UPDATE outbox SET failures = failures + 1, not_before = ? WHERE id = ?", (_text(not_before), number)
            )

    # === Inside a transaction ===

    def _queue(self, events: Sequence[tuple[str, dict[str, Any]]], now: dt.datetime) -> None:
        for event, body in events:
            self._db.execute(
                "INSERT INTO outbox (at, event, body) VALUES (?, ?, ?)", (_text(now), event, json.dumps(body))
            )

    def _skip(self, skipped: Sequence[tuple[str, str]], now: dt.datetime) -> None:
        for trigger, reason in skipped:
            self._trigger(trigger, now, None, reason)

    def _trigger(self, trigger: str, now: dt.datetime, run: int | None, note: str | None, position: int = 0) -> None:
        self._db.execute("DELETE FROM triggers WHERE id = ? AND note = 'suspect'", (trigger,))
        self._db.execute("INSERT INTO triggers VALUES (?, ?, ?, ?, ?)", (trigger, _text(now), run, position, note))

    def _release(self, trigger: str, run: Run) -> None:
        """Takes a trigger for not yet seen."""
        self._db.execute("DELETE FROM triggers WHERE id = ?", (trigger,))
        kind, _, rest = trigger.partition(":")
        if kind == "cron":
            self._set("cron_since", _text(_time(rest) - dt.timedelta(seconds=1)))
        elif kind == "span" and run.newest is not None and span_of(trigger) == run.newest:
            self._set("newest_handled", str(run.newest - 1))

    def _handled(self, number: int) -> None:
        before = self._fact("newest_handled")
        self._set("newest_handled", str(number if before is None else max(number, int(before))))

    def _fact(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def _run(self, row: sqlite3.Row) -> Run:
        triggers = self._db.execute("SELECT id FROM triggers WHERE run = ? ORDER BY position", (row["id"],)).fetchall()
        return Run(
            id=row["id"],
            key=triggers[0][0] if triggers else f"run:{row['id']}",
            status=row["status"],
            reason=row["reason"],
            newest=row["newest"],
            exclude=tuple(json.loads(row["exclude"])),
            attempts=row["attempts"],
            started_at=_time(row["started_at"]),
            ended_at=None if row["ended_at"] is None else _time(row["ended_at"]),
            not_before=None if row["not_before"] is None else _time(row["not_before"]),
            last_record=row["last_record"],
            result=None if row["result"] is None else json.loads(row["result"]),
            triggers=tuple(item[0] for item in triggers),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PipelineError(
                f"paths.root: {self.path.parent} cannot be written ({error.strerror}); "
                "the schedule keeps its state there"
            ) from None
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise PipelineError(_explain(self.path, error)) from None


def _explain(path: Path, error: sqlite3.DatabaseError) -> str:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path}: another process has held it for long; end that process, or try again later"
    if code.startswith("SQLITE_FULL"):
        return f"{path}: the disk is full; free some space, nothing is lost"
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return f"{path}: cannot be written; the schedule keeps its state there"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"{path}: is damaged; move it away, and the schedule starts anew from what the live version has seen"
    return f"{path}: {code or type(error).__name__}"


def open_run_of(run: Run | None) -> OpenRun | None:
    """The same for a decision."""
    return None if run is None else OpenRun(run.id, run.reason, run.attempts, run.not_before, run.status == "watching")


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat()


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
