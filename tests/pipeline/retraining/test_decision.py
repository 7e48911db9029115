"""Each row of each table is one situation and the decision that it must lead to."""
# ruff: noqa: E501 - a row of a table stands on one line

import datetime as dt
import time

import pytest

from pipeline.retraining.config import ScheduleConfig, WindowConfig
from pipeline.retraining.decision import Measurement, Observed, OpenRun, Span, decide
from pipeline.spans import window_members


def at(text: str) -> dt.datetime:
    """`at("25 03:00")`: that day of November 2026, UTC."""
    return dt.datetime.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=dt.UTC)


def span(number: int, version: int | None = None, digest: str = "a" * 64, written: str = "01 00:00", complete=True):
    return Span(number, version, digest, at(written), complete)


def handled(*spans: Span) -> frozenset[str]:
    return frozenset(item.trigger for item in spans)


CRON = {"cron": "0 3 * * *"}
DUE = "cron:2026-11-25T03:00:00+00:00"

CRON_TABLE = [
    # what                                schedule                   now         since       handled            run
    ("not due yet",                       CRON,                      "25 02:59", "24 12:00", (),                None),
    ("due to the minute",                 CRON,                      "25 03:00", "24 12:00", (),                DUE),
    ("missed while down: caught up once", CRON,                      "25 22:00", "10 12:00", (),                DUE),
    ("the same due time a second time",   CRON,                      "25 03:01", "24 12:00", (DUE,),            None),
    ("due before the first look",         CRON,                      "25 12:00", "25 11:00", (),                None),
    ("clock set back over a due time",    CRON,                      "25 02:30", "25 03:00", (DUE,),            None),
    ("and due again after that",          CRON,                      "25 03:00", "25 02:30", (DUE,),            None),
    ("clock had been a month ahead",      CRON,                      "25 03:00", "25 02:00", ("cron:2026-12-25T03:00:00+00:00",), DUE),
    ("Sunday is 0, as for Debian's cron", {"cron": "0 3 * * 0"},     "29 03:00", "24 12:00", (), "cron:2026-11-29T03:00:00+00:00"),
    ("time zone",                         CRON | {"time_zone": "Asia/Tokyo"}, "25 18:00", "25 12:00", (), "cron:2026-11-25T18:00:00+00:00"),
    ("quiet hours hold it",               CRON | {"quiet_hours": ["02:00-04:00"]}, "25 03:00", "24 12:00", (),  None),
    ("and let it go at their end",        CRON | {"quiet_hours": ["02:00-04:00"]}, "25 04:00", "24 12:00", (),  DUE),
    ("quiet hours over midnight",         CRON | {"quiet_hours": ["22:00-06:00"]}, "25 05:59", "24 12:00", (),  None),
    ("quiet hours that meet",             CRON | {"quiet_hours": ["02:00-04:00", "04:00-05:00"]}, "25 04:30", "24 12:00", (), None),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "now", "since", "done", "trigger"), [row[1:] for row in CRON_TABLE],
                         ids=[row[0] for row in CRON_TABLE])  # fmt: skip
def test_cron(schedule, now, since, done, trigger) -> None:
    observed = Observed(
        name="p", cron_since=at(since), spans=(span(1),), handled=frozenset(done) | handled(span(1)), newest_handled=1
    )
    decision = decide(at(now), ScheduleConfig(**schedule), WindowConfig(), observed)
    assert decision.run is (trigger is not None), decision.reason
    assert decision.triggers == (() if trigger is None else (trigger,))


S1, S2, S3, S4 = (span(n) for n in (1, 2, 3, 4))
S2_CORRECTED = span(2, digest="b" * 64)
S2_V2 = span(2, version=2)
S3_WRITING = span(3, written="25 11:59")
S3_HALF = span(3, complete=False)
ALL, TWO, ONE = {"last": "all"}, {"last": 2}, {"last": 1}
EACH, NEWEST = {"on_new_span": True, "settle_s": 120}, {"on_new_span": True, "backlog": "newest", "settle_s": 120}

SPAN_TABLE = [
    # what                                    schedule window spans            known        newest refused | run, ends with, covers, skips
    ("nothing there",                         EACH,   ONE, (),                 (),          None, (),    False, None, (), ()),
    ("nothing new",                           EACH,   ONE, (S1, S2),           (S1, S2),    2,    (),    False, 2, (), ()),
    ("one new",                               EACH,   ONE, (S1, S2),           (S1,),       1,    (),    True,  2, (S2,), ()),
    ("two new: one at a time, in order",      EACH,   ONE, (S1, S2, S3),       (S1,),       1,    (),    True,  2, (S2,), ()),
    ("two new, listed in any order",          EACH,   ONE, (S3, S1, S2),       (S1,),       1,    (),    True,  2, (S2,), ()),
    ("two new: the newest, window too short", NEWEST, ONE, (S1, S2, S3),       (S1,),       1,    (),    True,  3, (S3,), (S2,)),
    ("two new: the newest, window reaches",   NEWEST, TWO, (S1, S2, S3),       (S1,),       1,    (),    True,  3, (S2, S3), ()),
    ("a gap in the numbers is no matter",     EACH,   TWO, (S1, S4),           (S1,),       1,    (),    True,  4, (S4,), ()),
    ("corrected, the newest",                 EACH,   ONE, (S1, S2_CORRECTED), (S1, S2),    2,    (),    True,  2, (S2_CORRECTED,), ()),
    ("a new version of the newest",           EACH,   ONE, (S1, S2_V2),        (S1, S2),    2,    (),    True,  2, (S2_V2,), ()),
    ("corrected, inside the window",          EACH,   TWO, (S1, S2_V2, S3),    (S1, S2, S3), 3,   (),    True,  3, (S2_V2,), ()),
    ("corrected, outside the window",         EACH,   ONE, (S1, S2_V2, S3),    (S1, S2, S3), 3,   (),    False, 3, (), (S2_V2,)),
    ("late, inside the window",               EACH,   ALL, (S1, S2, S3),       (S1, S3),    3,    (),    True,  3, (S2,), ()),
    ("late, outside the window",              EACH,   ONE, (S1, S2, S3),       (S1, S3),    3,    (),    False, 3, (), (S2,)),
    ("late and new at once",                  EACH,   ALL, (S1, S2, S3, S4),   (S1, S3),    3,    (),    True,  4, (S2, S4), ()),
    ("still being written",                   EACH,   ONE, (S2, S3_WRITING),   (S2,),       2,    (),    False, 2, (), ()),
    ("those after it wait for it",            EACH,   ONE, (S2, S3_WRITING, S4), (S2,),     2,    (),    False, 2, (), ()),
    ("a split is missing: not waited for",    EACH,   ONE, (S2, S3_HALF, S4),  (S2,),       2,    (),    True,  4, (S4,), ()),
    ("refused is left out of the window",     EACH,   TWO, (S1, S2, S3),       (S1, S2),    2,    (S2,), True,  3, (S3,), ()),
    ("refused, then corrected",               EACH,   ONE, (S1, S2_V2),        (S1, S2),    2,    (S2,), True,  2, (S2_V2,), ()),
    ("nothing to learn from yet",             EACH,   {"last": 2, "evaluate_newest": True}, (S1,),  (), None, (), False, None, (), ()),
    ("one to learn from, one to evaluate on", EACH,   {"last": 2, "evaluate_newest": True}, (S1, S2), (), None, (), True, 2, (S1, S2), ()),
    ("before window.since",                   EACH,   {"last": "all", "since": 2}, (S1, S2), (), None, (), True, 2, (S2,), (S1,)),
    ("after window.until",                    EACH,   {"last": "all", "until": 2}, (S2, S3), (S2,), 2, (), False, 2, (), (S3,)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "window", "spans", "known", "newest", "refused", "run", "ends", "covers", "skips"),
    [row[1:] for row in SPAN_TABLE], ids=[row[0] for row in SPAN_TABLE],
)  # fmt: skip
def test_spans(schedule, window, spans, known, newest, refused, run, ends, covers, skips) -> None:
    observed = Observed(spans=spans, handled=handled(*known), newest_handled=newest, refused=handled(*refused))
    decision = decide(at("25 12:00"), ScheduleConfig(**schedule), WindowConfig(**window), observed)
    assert decision.run is run, decision.reason
    assert decision.newest == ends
    assert decision.triggers == tuple(item.trigger for item in covers)
    assert [trigger for trigger, _ in decision.skipped] == [item.trigger for item in skips]
    assert decision.exclude == tuple(s.number for s in spans if s.trigger in handled(*refused))


def test_span_written_in_the_future_is_taken_for_the_clock_was_set_back() -> None:
    observed = Observed(spans=(span(3, written="28 00:00"),))
    assert decide(at("25 12:00"), ScheduleConfig(**EACH), WindowConfig(), observed).run


MEASURED_TABLE = [
    # what                       schedule               measurements (rule, live, evidence, value)    live  handled   run
    ("drift within",             {"drift": 0.2},         [("drift", 7, "e", 0.2)],                     7, (),          None),
    ("drift beyond",             {"drift": 0.2},         [("drift", 7, "e", 0.21)],                    7, (),          "drift:7:e"),
    ("the worst feature counts", {"drift": 0.2},         [("drift", 7, "e", 0.1), ("drift", 7, "f", 0.3)], 7, (),      "drift:7:f"),
    ("of another version",       {"drift": 0.2},         [("drift", 6, "e", 0.9)],                     7, (),          None),
    ("answered already",         {"drift": 0.2},         [("drift", 7, "e", 0.9)],                     7, ("drift:7:e",), None),
    ("not bounded",              {"cron": "0 3 * * *"},  [("drift", 7, "e", 0.9)],                     7, (),          None),
    ("logs have drifted",        {"serving_drift": 0.1}, [("serving_drift", 7, "l", 0.4)],             7, (),          "serving_drift:7:l"),
    ("score at the bound",       {"min_score": 0.6},     [("score", 7, "e", 0.6)],                     7, (),          None),
    ("score below",              {"min_score": 0.6},     [("score", 7, "e", 0.59)],                    7, (),          "score:7:e"),
    ("no version is live",       {"min_score": 0.6},     [],                                           None, (),       None),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "values", "live", "done", "trigger"), [row[1:] for row in MEASURED_TABLE],
                         ids=[row[0] for row in MEASURED_TABLE])  # fmt: skip
def test_measurements(schedule, values, live, done, trigger) -> None:
    observed = Observed(
        cron_since=at("25 11:00"), spans=(S1,), handled=handled(S1) | frozenset(done), newest_handled=1, live=live,
        measurements=tuple(Measurement(*value, what="label") for value in values),
    )  # fmt: skip
    decision = decide(at("25 12:00"), ScheduleConfig(**schedule), WindowConfig(), observed)
    assert decision.triggers == (() if trigger is None else (trigger,)), decision.reason
    assert decision.run is (trigger is not None)


HOLD_TABLE = [
    # what                              schedule                      started, ended              now         run    look again
    ("no run yet",                      {"min_pause_s": 3600},         [], [],                     "25 12:00", True,  None),
    ("within the pause",                {"min_pause_s": 3600},         ["25 11:00"], ["25 11:10"], "25 12:00", False, "25 12:10"),
    ("the pause is over",               {"min_pause_s": 3600},         ["25 11:00"], ["25 11:00"], "25 12:00", True,  None),
    ("clock set back: no pause",        {"min_pause_s": 3600},         ["25 13:00"], ["25 13:10"], "25 12:00", True,  None),
    ("below the cap",                   {"max_runs_a_day": 2},         ["25 01:00", "24 23:00"], [], "25 12:00", True, None),
    ("at the cap",                      {"max_runs_a_day": 2},         ["25 01:00", "25 02:00"], [], "25 12:00", False, "26 00:00"),
    ("the day is the time zone's",      {"max_runs_a_day": 1, "time_zone": "Asia/Tokyo"}, ["24 14:00"], [], "24 15:00", True, None),
    ("the cap in that time zone",       {"max_runs_a_day": 1, "time_zone": "Asia/Tokyo"}, ["24 15:00"], [], "25 12:00", False, "25 15:00"),
    ("quiet hours",                     {"quiet_hours": ["11:00-13:30"]}, [], [],                  "25 12:00", False, "25 13:30"),
    ("quiet hours of the time zone",    {"quiet_hours": ["20:00-22:00"], "time_zone": "Asia/Tokyo"}, [], [], "25 12:00", False, "25 13:00"),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "started", "ended", "now", "run", "again"), [row[1:] for row in HOLD_TABLE],
                         ids=[row[0] for row in HOLD_TABLE])  # fmt: skip
def test_what_holds_a_run_leaves_its_trigger_for_later(schedule, started, ended, now, run, again) -> None:
    observed = Observed(
        spans=(S1,), started=tuple(at(item) for item in started), ended=tuple(at(item) for item in ended)
    )
    decision = decide(at(now), ScheduleConfig(on_new_span=True, **schedule), WindowConfig(), observed)
    assert decision.run is run, decision.reason
    assert decision.triggers == ((S1.trigger,) if run else ())
    assert decision.check_at == (None if again is None else at(again))


ATTEMPT, WATCH = "attempt 2 of 3: span 1 is new", "the watch after the push goes on: span 1 is new"

OPEN_TABLE = [
    # what                                  schedule                           not before  watching run    reason
    ("interrupted: goes on at once",        {},                                None,       False,   True,  ATTEMPT),
    ("a pause or cap does not hold it",     {"max_runs_a_day": 1},             None,       False,   True,  ATTEMPT),
    ("quiet hours do",                      {"quiet_hours": ["11:00-13:00"]},  None,       False,   False, f"{ATTEMPT}; held by quiet hours"),
    ("but not while its version is live",   {"quiet_hours": ["11:00-13:00"]},  None,       True,    True,  WATCH),
    ("nor does the cap then",               {"max_runs_a_day": 1},             None,       True,    True,  WATCH),
    ("failed: waits for its time",          {"retry_after_s": 3600},           "25 12:30", False,   False, ATTEMPT),
    ("its time has come",                   {"retry_after_s": 3600},           "25 12:00", False,   True,  ATTEMPT),
    ("the clock was set back meanwhile",    {"retry_after_s": 3600},           "26 12:00", False,   True,  ATTEMPT),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "not_before", "watching", "run", "reason"), [row[1:] for row in OPEN_TABLE],
                         ids=[row[0] for row in OPEN_TABLE])  # fmt: skip
def test_open_run_comes_before_any_new_one(schedule, not_before, watching, run, reason) -> None:
    observed = Observed(
        spans=(S1,), started=(at("25 11:00"),),
        open_run=OpenRun(5, "span 1 is new", 1, None if not_before is None else at(not_before), watching),
    )  # fmt: skip
    decision = decide(at("25 12:00"), ScheduleConfig(on_new_span=True, **schedule), WindowConfig(), observed)
    assert (decision.run, decision.resume, decision.triggers) == (run, 5, ())
    assert decision.reason.startswith(reason)


def test_several_triggers_make_one_run() -> None:
    schedule = ScheduleConfig(cron="0 3 * * *", on_new_span=True, min_score=0.5)
    observed = Observed(
        cron_since=at("24 12:00"), spans=(S1,), measurements=(Measurement("score", 7, "e", 0.4, "macro_f1"),), live=7
    )
    decision = decide(at("25 12:00"), schedule, WindowConfig(), observed)
    assert decision.triggers == (DUE, "score:7:e", S1.trigger)
    assert decision.reason == (
        "cron was due at 2026-11-25 03:00:00 UTC; span 1 is new; score of macro_f1, version 7: 0.4 < 0.5"
    )


def test_cron_run_takes_the_data_as_it_stands_and_names_what_no_window_reaches() -> None:
    observed = Observed(cron_since=at("24 12:00"), spans=(S1, S2, S3), handled=handled(S1), newest_handled=1)
    decision = decide(at("25 12:00"), ScheduleConfig(**CRON), WindowConfig(last=1), observed)
    assert decision.triggers == (DUE, S3.trigger)
    assert decision.newest == 3
    assert decision.skipped == ((S2.trigger, "span 2: the window that ends with span 3 does not reach back to it"),)


def test_due_without_data_says_what_it_waits_for() -> None:
    observed = Observed(cron_since=at("24 12:00"), spans=(S3_HALF,))
    decision = decide(at("25 12:00"), ScheduleConfig(**CRON), WindowConfig(), observed)
    assert not decision.run
    assert decision.reason == (
        "due (cron was due at 2026-11-25 03:00:00 UTC), but there is nothing to learn from: "
        "span 3 lacks the file of a split"
    )


def test_jitter_is_the_same_each_time_and_different_for_another_pipeline() -> None:
    schedule = ScheduleConfig(cron="0 3 * * *", jitter_s=3600)
    starts = {}
    for name in ("a", "b", "c"):
        minutes = [at("25 03:00") + dt.timedelta(minutes=n) for n in range(61)]
        observed = Observed(name=name, cron_since=at("24 12:00"), spans=(S1,), handled=handled(S1), newest_handled=1)
        runs = [moment for moment in minutes if decide(moment, schedule, WindowConfig(), observed).run]
        assert runs == minutes[minutes.index(runs[0]) :], "once due it stays due"
        starts[name] = runs[0]
        before = decide(at("25 03:00") - dt.timedelta(seconds=1), schedule, WindowConfig(), observed)
        assert dt.timedelta(0) <= runs[0] - before.check_at < dt.timedelta(minutes=1)
    assert len(set(starts.values())) > 1


def test_hour_that_a_clock_change_skips_or_doubles_runs_once() -> None:
    schedule = ScheduleConfig(cron="30 2 * * *", time_zone="Europe/Berlin")
    for first, last in (("2026-03-28 12:00", "2026-03-29 12:00"), ("2026-10-24 12:00", "2026-10-25 12:00")):
        now, end = (dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC) for text in (first, last))
        done: set[str] = set()
        since = now
        runs = []
        while now < end:
            observed = Observed(cron_since=since, spans=(S1,), handled=frozenset(done) | handled(S1), newest_handled=1)
            decision = decide(now, schedule, WindowConfig(), observed)
            if decision.run:
                runs.append(now)
                done.update(decision.triggers)
            now += dt.timedelta(minutes=10)
        assert len(runs) == 1, runs


@pytest.mark.parametrize(
    ("window", "newest", "members"),
    [
        ({}, None, (9,)),
        ({"last": 3}, None, (5, 7, 9)),
        ({"last": 3}, 7, (2, 5, 7)),
        ({"last": 30}, None, (1, 2, 5, 7, 9)),
        ({"last": "all"}, 5, (1, 2, 5)),
        ({"last": "all", "since": 2, "until": 7}, None, (2, 5, 7)),
        ({"last": 2, "exclude": (7,)}, None, (5, 9)),
        ({"last": "all", "since": "2026-11-01"}, None, ()),
    ],
)
def test_window(window, newest, members) -> None:
    assert window_members(WindowConfig(**window), [5, 1, 9, 2, 7], newest) == members


def test_date_stands_for_the_span_of_that_day() -> None:
    window = WindowConfig(last="all", since="2026-11-02", until="2026-11-03")
    assert window_members(window, [20261101, 20261102, 20261103, 20261104]) == (20261102, 20261103)


def test_ten_thousand_spans_are_decided_on_in_well_under_a_second() -> None:
    spans = tuple(span(n, digest=f"{n:064d}") for n in range(10_000))
    observed = Observed(cron_since=at("01 00:00"), spans=spans, handled=handled(*spans[:9_990]), newest_handled=9_989)
    schedule = ScheduleConfig(on_new_span=True, cron="0 3 * * *", drift=0.1, min_score=0.5)
    began = time.perf_counter()
    decision = decide(at("25 12:00"), schedule, WindowConfig(last="all"), observed)
    print(f"10,000 spans: {time.perf_counter() - began:.3f} s")
    assert decision.triggers == ("cron:2026-11-25T03:00:00+00:00", spans[9_990].trigger)
