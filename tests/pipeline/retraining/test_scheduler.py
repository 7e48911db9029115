"""Looks, one after the other, on a real state and a run that takes milliseconds."""

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import BusyError, PipelineError
from pipeline import records
from pipeline.retraining import cron, launch
from pipeline.retraining.decision import Measurement
from pipeline.retraining.launch import Request, Stopped
from pipeline.retraining.state import State
from pipeline.spans import spans_of_run


def windows(project) -> list[str]:
    return [line.split(" ", 1)[1] for line in project.effects()]


def statuses(project) -> list[str]:
    state = State(project.root)
    found = [run.status for run in reversed(state.runs())]
    state.close()
    return found


def test_each_new_span_is_run_once_and_in_order(project) -> None:
    scheduler = project.scheduler()
    assert scheduler.look().run.status == "pushed"
    assert scheduler.look().run is None
    project.add_span(2)
    project.add_span(1)
    for expected in ("[1]", "[2]"):
        assert scheduler.look().run.status == "pushed"
        assert windows(project)[-1] == expected
    for _ in range(3):
        look = scheduler.look()
        assert look.run is None
        assert look.decision.reason == "nothing is due: nothing new after span 2"
    assert windows(project) == ["[0]", "[1]", "[2]"]


def test_first_look_starts_with_the_newest_of_many_spans(make_project) -> None:
    project = make_project()
    for number in range(1, 20):
        project.add_span(number)
    assert project.scheduler().look().run.newest == 19
    assert project.scheduler().look().run is None


def test_first_look_starts_where_it_is_told(make_project) -> None:
    project = make_project("schedule.first_span=18")
    for number in range(1, 20):
        project.add_span(number)
    assert [project.scheduler().look().run.newest for _ in range(2)] == [18, 19]


def test_first_look_goes_on_after_the_live_version_unless_its_data_was_corrected(project) -> None:
    project.scheduler().look()
    project.add_span(1)
    project.scheduler().look()
    for name in ("schedule.sqlite", "schedule.lock"):
        (project.root / name).unlink()
    assert project.scheduler().look().run is None, "the live version has seen span 1"
    (project.root / "schedule.sqlite").unlink()
    project.add_span(1, text="corrected")
    assert project.scheduler().look().run.newest == 1


def test_files_of_the_live_versions_span_are_not_held_in_memory_to_be_hashed(project, monkeypatch) -> None:
    read_bytes = Path.read_bytes

    def small_files_only(path: Path) -> bytes:
        assert path.suffix != ".csv"
        return read_bytes(path)

    project.scheduler().look()
    (project.root / "schedule.sqlite").unlink()
    monkeypatch.setattr(Path, "read_bytes", small_files_only)
    assert project.scheduler().look().run is None, "the live version has seen span 0"


def test_corrected_span_is_a_new_trigger_and_touching_its_files_is_none(project) -> None:
    scheduler = project.scheduler()
    scheduler.look()
    project.pass_time(hours=1)
    project.add_span(0)  # the same content, written anew
    assert scheduler.look().run is None
    project.add_span(0, text="corrected")
    assert scheduler.look().run.status == "pushed"
    project.add_span(0, version=2, text="corrected again")
    assert scheduler.look().run.triggers[0].startswith("span:0.2:")
    assert len(project.effects()) == 3


def test_refused_span_is_left_out_of_later_windows_until_it_is_corrected(make_project) -> None:
    project = make_project("window.last=3")
    bad = {"status": "failed", "error": "span-1/train.csv: 9 of 10 rows are bad", "error_kind": "DataError"}
    project.run.faults = {1: bad}
    scheduler = project.scheduler()
    scheduler.look()
    project.add_span(1)
    refused = scheduler.look().run
    assert (refused.status, refused.attempts) == ("refused", 1)
    assert refused.result["cause"] == "span-1/train.csv: 9 of 10 rows are bad"
    assert scheduler.look().run is None, "the same data is not tried again"
    project.add_span(2)
    assert scheduler.look().run.exclude == (1,)
    project.run.faults = {}
    project.add_span(1, version=2)
    scheduler.look()
    assert windows(project) == ["[0]", "[0, 1]", "[0, 2]", "[0, 1, 2]"]


def refuses(project, span: int, step: str | None = None):
    """A run whose ingest, or another step, refuses one span as long as it is in the window."""

    def fault(request):
        window = project.config.window.model_copy(update={"until": request.newest, "exclude": request.exclude})
        if span in spans_of_run(project.config.data, window):
            return {
                "status": "failed",
                "error": f"span-{span}: bad",
                "error_kind": "DataError",
                "step": step or f"examples_{span}",
            }
        return None

    return fault


def test_span_that_an_earlier_run_has_seen_is_refused_alone_and_later_spans_go_on_without_it(make_project) -> None:
    project = make_project("window.last=3")
    for number in range(1, 6):
        project.add_span(number)
    project.run.faults = dict.fromkeys(range(9), refuses(project, 4))  # span 4 was there before the first look
    scheduler = project.scheduler()
    runs = [scheduler.look().run, scheduler.look().run]
    assert scheduler.look().run is None
    project.add_span(6)
    runs.append(scheduler.look().run)
    assert scheduler.look().run is None
    assert [(run.newest, run.exclude, run.status) for run in runs] == [
        (5, (), "refused"), (5, (4,), "pushed"), (6, (4,), "pushed"),
    ]  # fmt: skip
    assert runs[2].reason == "span 6 version 1 is new; without span 4, whose data was refused"
    assert windows(project) == ["[3, 4, 5]", "[2, 3, 5]", "[3, 5, 6]"]


def test_new_spans_beside_a_refused_one_are_not_blamed(make_project) -> None:
    project = make_project("window.last=3", "schedule.backlog=newest", "schedule.cron=0 4 * * *")
    scheduler = project.scheduler()
    scheduler.look()
    project.run.faults = dict.fromkeys(range(9), refuses(project, 1))
    project.add_span(1)
    project.add_span(2)
    project.pass_time(hours=2)
    due = "cron:2026-11-01T04:00:00+00:00"
    refused = scheduler.look().run
    assert refused.status == "refused"
    assert refused.triggers[0].startswith("span:1."), "the others are answered by another run"
    good = scheduler.look().run
    assert (good.status, good.exclude, good.triggers[0]) == ("pushed", (1,), due)
    assert [item.split(".")[0] for item in good.triggers[1:]] == ["span:2"]
    assert scheduler.look().run is None


def test_new_spans_that_were_refused_together_are_tried_one_by_one(make_project) -> None:
    project = make_project("window.last=5", "schedule.backlog=newest", "schedule.cron=0 4 * * *")
    scheduler = project.scheduler()
    scheduler.look()
    project.run.faults = dict.fromkeys(range(9), refuses(project, 2, "data_gate"))
    for span in (1, 2, 3):
        project.add_span(span)
    project.pass_time(hours=2)
    runs = [scheduler.look().run for _ in range(2)]
    project.add_span(4)
    runs += [scheduler.look().run for _ in range(3)]
    assert [(run.newest, run.exclude, run.status) for run in runs] == [
        (3, (), "refused"), (1, (2, 3), "pushed"), (2, (3, 4), "refused"), (3, (2, 4), "pushed"), (4, (2,), "pushed"),
    ]  # fmt: skip
    assert runs[1].triggers[0] == "cron:2026-11-01T04:00:00+00:00", "the other triggers are answered all the same"
    assert runs[1].reason.endswith("without span 2, 3, until it is known whose data was refused")
    assert runs[2].reason == "span 2 version 1 is new; without span 3, 4, until it is known whose data was refused"
    assert scheduler.look().run is None
    assert windows(project) == ["[0]", "[0, 1, 2, 3]", "[0, 1]", "[0, 1, 2]", "[0, 1, 3]", "[0, 1, 3, 4]"]
    state = State(project.root)
    assert {item.partition(".")[0] for item in state.refused()} == {"span:2"}
    assert (state.suspects(), state.skips()) == (frozenset(), [])
    state.close()


def test_late_spans_that_were_refused_together_are_tried_one_by_one(make_project) -> None:
    project = make_project("window.last=3")
    project.add_span(5)
    scheduler = project.scheduler()
    scheduler.look()
    project.run.faults = dict.fromkeys(range(9), refuses(project, 4, "data_gate"))
    for span in (3, 4):
        project.add_span(span)
    runs = [scheduler.look().run for _ in range(3)]
    assert scheduler.look().run is None
    assert [(run.newest, run.exclude, run.status) for run in runs] == [
        (5, (), "refused"), (5, (4,), "pushed"), (5, (), "refused"),
    ]  # fmt: skip
    assert windows(project)[1:] == ["[3, 4, 5]", "[0, 3, 5]", "[3, 4, 5]"]


def test_suspect_that_is_corrected_waits_for_the_other_and_is_new(make_project) -> None:
    project = make_project("window.last=3", "schedule.backlog=newest")
    scheduler = project.scheduler()
    scheduler.look()
    project.run.faults = dict.fromkeys(range(9), refuses(project, 2, "data_gate"))
    for span in (1, 2):
        project.add_span(span)
    scheduler.look()
    project.add_span(1, version=2)
    project.run.faults = {}
    assert [scheduler.look().run.exclude for _ in range(2)] == [(1,), ()]
    assert scheduler.look().run is None
    assert windows(project)[1:] == ["[0, 1, 2]", "[0, 2]", "[0, 1, 2]"]


def test_spans_none_of_which_is_a_window_alone_are_refused_together(make_project) -> None:
    project = make_project("window.last=2", "window.evaluate_newest=true", "schedule.first_span=0")
    project.add_span(1)
    project.run.faults = dict.fromkeys(range(9), refuses(project, 1, "data_gate"))
    scheduler = project.scheduler()
    assert scheduler.look().run.status == "refused"
    assert scheduler.look().run is None
    assert windows(project) == ["[0, 1]"]


def test_released_span_that_ended_the_window_is_run_before_those_after_it(make_project) -> None:
    project = make_project("window.last=2")
    project.add_span(1)
    scheduler = project.scheduler()
    project.run.faults = dict.fromkeys(range(9), refuses(project, 0))
    scheduler.look()
    project.add_span(2)
    assert [scheduler.look().run.newest for _ in range(2)] == [1, 2]


def test_span_that_was_corrected_while_it_was_refused_is_new(make_project) -> None:
    project = make_project("window.last=2")
    project.add_span(1)

    def corrected_meanwhile(request):
        project.add_span(0, version=2)
        return {"status": "failed", "error": "span-0: bad", "error_kind": "DataError", "step": "examples_0"}

    project.run.faults = {1: corrected_meanwhile}
    scheduler = project.scheduler()
    assert scheduler.look().run.status == "refused"
    project.run.faults = {}
    run = scheduler.look().run
    assert (run.status, run.exclude, run.triggers[0][:9]) == ("pushed", (), "span:0.2:")
    assert scheduler.look().run is None


def test_passing_failure_is_tried_again_later_and_later_and_then_given_up(project) -> None:
    project.run.faults = {0: {"status": "failed", "error": "No space left on device", "error_kind": "OSError"}}
    scheduler = project.scheduler()
    waits = []
    assert scheduler.look().run.status == "retry"
    for _ in range(2):
        look = scheduler.look()
        assert look.run is None
        waits.append((look.decision.check_at - project.now).total_seconds())
        project.now = look.decision.check_at
        run = scheduler.look().run
    assert waits == [60.0, 120.0]
    assert (run.status, run.attempts) == ("failed", 3)
    project.pass_time(days=1)
    assert scheduler.look().run is None
    assert len(project.effects()) == 3


def test_passing_failure_that_passes_is_one_run(project) -> None:
    project.run.faults = {0: {"status": "failed", "error": "No space left on device", "error_kind": "OSError"}}
    scheduler = project.scheduler()
    scheduler.look()
    project.run.faults = {}
    project.add_span(1)
    project.pass_time(minutes=1)
    assert scheduler.look().run.newest == 0, "the open run comes before the next span"
    assert scheduler.look().run.newest == 1
    assert statuses(project) == ["pushed", "pushed"]


def test_gates_that_do_not_hold_are_named(project) -> None:
    gates = [{"gate": "macro_f1 >= 0.6", "passed": False, "message": "macro_f1 0.4 breaks its bound 0.6"},
             {"gate": "accuracy >= 0.1", "passed": True}]  # fmt: skip
    project.run.faults = {0: {"status": "not_blessed", "gates": gates}}
    run = project.scheduler().look().run
    assert (run.status, run.result["cause"]) == ("refused", "macro_f1 0.4 breaks its bound 0.6")


def test_clock_that_is_set_back_neither_repeats_nor_stalls(make_project) -> None:
    project = make_project("schedule.cron=0 4 * * *")
    scheduler = project.scheduler()
    scheduler.look()
    project.pass_time(hours=2)
    assert scheduler.look().run.key == "cron:2026-11-01T04:00:00+00:00"
    project.pass_time(hours=-2)
    for _ in range(5):
        assert scheduler.look().run is None
        project.pass_time(minutes=30)
    project.pass_time(days=-300)
    project.add_span(1)
    assert scheduler.look().run.newest == 1
    project.pass_time(days=1)
    assert scheduler.look().run.key.startswith("cron:2026-01-06T04:00")
    ids = [record["run_id"] for record in records.read_records(project.root)]
    assert ids == sorted(set(ids))


def test_run_for_a_span_between_a_due_time_and_its_jitter_leaves_the_due_time(make_project) -> None:
    project = make_project("schedule.cron=0 3 * * *", "schedule.jitter_s=7200")
    scheduler = project.scheduler()
    assert scheduler.look().run is not None, "span 0"
    for day in (2, 3, 4):
        due = dt.datetime(2026, 11, day, 3, tzinfo=dt.UTC)
        jitter = cron.jitter(project.config.name, due, 7200)
        assert jitter > dt.timedelta(seconds=30)
        project.now = due + dt.timedelta(seconds=30)
        project.add_span(day)
        assert scheduler.look().run.key.startswith(f"span:{day}.")
        project.now = due + jitter
        assert scheduler.look().run.triggers == (f"cron:{due.isoformat()}",)
        assert scheduler.look().run is None


def test_measurement_out_of_bounds_runs_once_and_is_told(make_project) -> None:
    project = make_project("schedule.on_new_span=false", "schedule.drift=0.2", "schedule.cron=0 4 * * *")
    calls = []

    def measure(live, spans, stop):
        calls.append((live, [span.number for span in spans]))
        return [Measurement("drift", live, "e" * 64, 0.3, "label")]

    scheduler = project.scheduler(measure=measure)
    assert scheduler.look().run is None
    assert calls == [], "there is no live version yet"
    project.pass_time(hours=2)
    assert scheduler.look().run.status == "pushed"
    run = scheduler.look().run
    assert run.reason.startswith("drift of label, version ")
    assert run.reason.endswith(": 0.3 > 0.2")
    assert scheduler.look().run is None
    assert len(calls) == 1, "measured again only after schedule.measure_every_s"
    project.pass_time(hours=1.1)
    assert scheduler.look().run is None
    assert len(calls) == 1, "nothing new to measure on"
    project.add_span(0, version=2)
    assert scheduler.look().run is None, "the same trigger is answered already"
    assert len(calls) == 2
    state = State(project.root)
    assert [event for _, event, *_ in state.outbox()] == ["pushed", "drift", "pushed"]
    state.close()


def test_what_could_not_be_measured_is_tried_again_when_measuring_is_next_due(make_project) -> None:
    project = make_project("schedule.drift=0.2", "schedule.min_score=0.1")
    score, drift = Measurement("score", 0, "e" * 64, 0.5, "macro_f1"), Measurement("drift", 0, "e" * 64, 0.1, "label")
    answers = [[], [score], [score, drift]]
    calls = []

    def measure(live, spans, stop):
        calls.append(live)
        return [dataclasses.replace(item, live=live) for item in answers[len(calls) - 1]]

    scheduler = project.scheduler(measure=measure)
    assert scheduler.look().run.status == "pushed"
    for times, rules in ((1, set()), (2, {"score"}), (3, {"score", "drift"}), (3, {"score", "drift"})):
        scheduler.look()
        scheduler.look()
        assert len(calls) == times, "not before schedule.measure_every_s, and no more when all is measured"
        state = State(project.root)
        assert {item.rule for item in state.measurements()} == rules
        state.close()
        project.pass_time(hours=1.1)


@pytest.mark.parametrize(("refused", "runs"), [(1, ["[0]", "[0, 1]"]), (0, ["[0]", "[0, 1]", "[1]"])])
def test_measurement_is_answered_without_a_refused_span_unless_it_is_of_that_span(make_project, refused, runs) -> None:
    project = make_project("schedule.drift=0.2", "window.last=2", "schedule.measure_every_s=1")

    versions = []

    def measure(live, spans, stop):
        versions.append(live)
        value = 0.3 if live == versions[0] and spans[-1].number == 1 else 0.1
        return [Measurement("drift", live, spans[-1].digest, value, "label")]

    scheduler = project.scheduler(measure=measure)
    scheduler.look()
    project.add_span(1)
    project.run.faults = dict.fromkeys(range(9), refuses(project, refused))
    scheduler.look()
    project.pass_time(hours=1)
    for _ in range(3):
        scheduler.look()
    assert windows(project) == runs


def test_watched_version_that_is_rolled_back_settles_the_run_and_marks_its_record(project) -> None:
    run = project.scheduler(watch=lambda version, stop: "error share 0.5 > 0.01").look().run
    assert (run.status, run.result["rolled_back"]) == ("rolled_back", "error share 0.5 > 0.01")
    assert records.read_records(project.root)[-1]["rolled_back"] == "error share 0.5 > 0.01"


@pytest.mark.parametrize("settings", [(), ("schedule.quiet_hours=['02:00-09:00']",)])
def test_watch_that_is_interrupted_goes_on_at_the_next_look(project, make_project, settings) -> None:
    def stopped(version, stop):
        raise Stopped

    with pytest.raises(Stopped):
        project.scheduler(watch=stopped).look()
    assert statuses(project) == ["watching"]
    project.config = make_project(*settings).config
    seen = []
    run = project.scheduler(watch=lambda version, stop: seen.append(version)).look().run
    assert run.status == "pushed"
    assert seen == [run.result["version"]]
    assert len(project.effects()) == 1


def test_second_schedule_on_the_same_root_is_refused(project) -> None:
    def start(request, stop, lock):
        with pytest.raises(BusyError, match="another schedule is at work"):
            project.scheduler().look()
        assert project.scheduler().explain().reason.startswith("attempt 2 of 3"), "explain needs no lock"
        return project.run(request, stop, lock)

    assert project.scheduler(start=start).look().run.status == "pushed"


def test_explain_changes_nothing(project) -> None:
    decision = project.scheduler().explain()
    assert decision.run
    assert decision.reason == "span 0 version 1 is new"
    assert not project.root.exists()


def test_loop_follows_new_spans_and_stops_when_told(project) -> None:
    scheduler = project.scheduler()
    told = []
    thread = threading.Thread(target=scheduler.loop, args=(told.append,))
    thread.start()
    deadline = time.monotonic() + 30
    while len(project.effects()) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    project.add_span(1)
    while len(project.effects()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    scheduler.stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert windows(project) == ["[0]", "[1]"]
    assert [look.run.status for look in told if look.run] == ["pushed", "pushed"]


def test_run_whose_schedule_was_killed_is_waited_for_and_its_record_taken(project, tmp_path: Path) -> None:
    """A process that outlives the schedule: it holds the run's lock, and writes its record in the end."""
    go = tmp_path / "go"
    code = (
        "import json, pathlib, sys, time\n"
        "from pipeline import records\n"
        "root, key, go = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])\n"
        "while not go.exists(): time.sleep(0.02)\n"
        "record = {'run_id': records.new_run_id(root), 'status': 'not_blessed', 'trigger': key, 'gates': []}\n"
        "records.write_record(root, record); print(json.dumps(record))\n"
    )
    started = threading.Event()

    class KilledSchedule(BaseException):
        pass

    def start_and_die(request, stop, lock):
        subprocess.Popen([sys.executable, "-c", code, str(project.root), request.key, str(go)], pass_fds=(lock,))
        raise KilledSchedule

    with pytest.raises(KilledSchedule):
        project.scheduler(start=start_and_die).look()
    assert statuses(project) == ["started"]
    results = []

    def look() -> None:
        started.set()
        results.append(project.scheduler().look())

    thread = threading.Thread(target=look)
    thread.start()
    started.wait(10)
    time.sleep(0.5)
    assert results == [], "the run is still alive"
    go.touch()
    thread.join(60)
    assert results[0].run.status == "refused"
    assert project.effects() == [], "nothing was started a second time"


def test_process_is_ended_when_it_takes_too_long_or_the_schedule_stops(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    late = launch.run_json(sleep, tmp_path / "log", threading.Event(), timeout_s=0.1)
    assert (late["status"], late["error_kind"]) == ("failed", "Timeout")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        launch.run_json(sleep, tmp_path / "log", stop)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import json; print('noise'); print(json.dumps({'status': 'pushed'}))", {"status": "pushed"}),
        ("import os; os.kill(os.getpid(), 9)", {"status": "failed", "error_kind": "Killed"}),
        ("raise SystemExit(7)", {"status": "failed", "error_kind": "Exit"}),
    ],
)
def test_process_is_taken_at_its_word_or_its_end_is_named(tmp_path: Path, code: str, expected: dict) -> None:
    found = launch.run_json([sys.executable, "-c", code], tmp_path / "log", threading.Event())
    assert {key: found[key] for key in expected} == expected


def test_record_of_a_run_that_was_killed_is_not_taken_for_its_end(tmp_path: Path) -> None:
    for number, status in (("1", "pushed"), ("2", records.INTERRUPTED)):
        records.write_record(tmp_path, {"run_id": number, "trigger": "span:1", "status": status})
    assert launch.finished(tmp_path, "span:1", after="1") is None
    assert launch.finished(tmp_path, "span:1", after="")["status"] == "pushed"


def test_configured_exclusions_stay_when_refused_spans_are_added(make_project) -> None:
    project = make_project("window.last=3", "window.exclude=[7]")
    project.run.faults = {1: {"status": "failed", "error": "bad", "error_kind": "DataError"}}
    scheduler = project.scheduler()
    scheduler.look()
    for span in (1, 2):
        project.add_span(span)
        scheduler.look()
    assert [request.exclude for request in project.run.requests] == [(), (), (1, 7)]


def test_data_without_spans_is_run_on_when_it_changes_and_no_window_is_asked_for(tmp_path: Path) -> None:
    from pipeline.config import load_config
    from pipeline.retraining.scheduler import Scheduler

    (tmp_path / "rows").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "rows" / f"{name}.csv").write_text("text,label\na,yes\n")
    (tmp_path / "c.toml").write_text(
        'task = "binary"\nlabels = ["no", "yes"]\n[data]\ninput = "rows"\n'
        'splits = { train = "train.csv", eval = "dev.csv" }\n[evaluation]\nsplit = "eval"\n'
        "[schedule]\non_new_span = true\nsettle_s = 0\n"
    )
    config = load_config(tmp_path / "c.toml", [f"paths.root={tmp_path}/root"])
    requests = []

    def start(request, stop, lock):
        requests.append(request)
        return {"status": "pushed", "run_id": "r", "version": 1}

    scheduler = Scheduler(config, start)
    assert scheduler.look().run.status == "pushed"
    assert scheduler.look().run is None
    (tmp_path / "rows" / "train.csv").write_text("text,label\nb,no\n")
    assert scheduler.look().run.status == "pushed"
    assert [request.overrides for request in requests] == [(), ()]


def test_request_becomes_overrides_of_the_configuration() -> None:
    assert Request("k", 7, (3, 4)).overrides == ("window.until=7", "window.exclude=[3, 4]")
    assert Request("k", None).overrides == ()


def test_state_of_a_later_program_and_a_damaged_one_are_named(project) -> None:
    project.scheduler().look()
    path = project.root / "schedule.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(PipelineError, match="is of version 99, this program writes 1"):
        project.scheduler().look()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(PipelineError, match="is damaged; move it away"):
        project.scheduler().look()


def test_state_that_another_process_holds_is_named(project) -> None:
    project.scheduler().look()
    with sqlite3.connect(project.root / "schedule.sqlite") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PipelineError, match="another process has held it"):
            State(project.root, timeout_s=0.05)


def test_trigger_is_recorded_once_whoever_tries(project) -> None:
    decision = project.scheduler().explain()
    state = State(project.root)
    state.first_look(project.now, [])
    assert state.start(decision, project.now, "") is not None
    assert state.start(decision, project.now, "") is None
    assert len(state.runs()) == 1
    state.close()


def test_decisions_and_skips_are_kept_for_explain(make_project) -> None:
    project = make_project()
    scheduler = project.scheduler()
    scheduler.look()
    project.add_span(5)
    scheduler.look()
    project.add_span(3)
    assert scheduler.look().run is None
    state = State(project.root)
    assert state.skips()[0]["reason"].startswith(
        "span 3 version 1: the window that ends with span 5 does not reach back to it"
    )
    assert [entry["run"] for entry in state.decisions()] == [False, True, True]
    state.close()
    assert json.dumps(project.scheduler().explain().findings[1].text) == '"nothing new after span 5"'


class SmallDisk:
    """A file system of its own under the pipeline root, which can be filled and cleared."""

    def __init__(self, root: Path) -> None:
        self.root, self._filler = root, root / "filler"

    def fill(self, free: int = 0) -> None:
        """Leaves `free` pages of 4096 bytes."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096) == 4096:
                pass
        os.truncate(self._filler, max(self._filler.stat().st_size - 4096 * free, 0))

    def clear(self) -> None:
        self._filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    root = tmp_path / "root"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs the rights of root")
    yield SmallDisk(root)
    subprocess.run(["umount", "--lazy", str(root)], check=True)


FULL = r"(the disk is full; free some space, nothing is lost|cannot be written \(No space left on device\))"


def test_disk_that_is_full_when_a_run_has_ended_loses_nothing_of_it(project, small_disk: SmallDisk) -> None:
    def run_and_fill(request, stop, lock):
        record = project.run(request, stop, lock)
        small_disk.fill()
        return record

    with pytest.raises(PipelineError, match=rf"schedule\.sqlite: {FULL}"):
        project.scheduler(start=run_and_fill).look()
    with pytest.raises(PipelineError, match=FULL):
        project.scheduler().look()
    small_disk.clear()
    assert statuses(project) == ["started"]
    run = project.scheduler().look().run
    assert (run.status, run.attempts) == ("pushed", 1)
    assert project.scheduler().look().run is None
    assert windows(project) == ["[0]"], "the run was made once"


def test_disk_that_is_nearly_full_at_whatever_write_ends_in_a_clear_error_and_the_next_look_is_sound(
    project, small_disk: SmallDisk
) -> None:
    def run(request, stop, lock):
        try:
            return project.run(request, stop, lock)
        except OSError as error:  # as the run's process would say
            return {"status": "failed", "error": str(error), "error_kind": "OSError"}

    scheduler = project.scheduler(start=run)
    scheduler.look()
    errors = []
    for span in range(1, 25):
        project.add_span(span)
        small_disk.fill(free=span - 1)
        try:
            scheduler.look()
        except PipelineError as error:
            errors.append(str(error))
        small_disk.clear()
        while scheduler.look().run is not None or statuses(project)[-1] != "pushed":
            project.pass_time(minutes=1)
    assert len(errors) > 3, "the disk was full at several writes"
    assert [error for error in errors if not re.search(FULL, error)] == []
    assert {error.partition(":")[0] for error in errors} == {"paths.root", str(project.root / "schedule.sqlite")}
    with sqlite3.connect(project.root / "schedule.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    state = State(project.root)
    assert [(run.newest, run.status) for run in reversed(state.runs())] == [(span, "pushed") for span in range(25)]
    state.close()
