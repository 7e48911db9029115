import json

import pytest

from components.errors import PushError
from components.push.base_path import published
from components.push.publish import publish
from pipeline import records, versions
from pipeline.retraining import lineage


@pytest.fixture
def pushed(make_project):
    """Three versions of windows of two spans: [0], [0, 1], [1, 2]."""
    project = make_project("window.last=2")
    scheduler = project.scheduler()
    for span in range(3):
        if span:
            project.add_span(span)
            project.pass_time(days=1)
        scheduler.look()
    return project


def numbers(project) -> list[int]:
    return sorted(version.number for version in versions.list_versions(project.config.serving_dir))


def test_version_leads_back_to_its_spans_files_and_trigger(pushed) -> None:
    found = lineage.of_version(pushed.config)
    assert (found["version"], found["state"]) == (numbers(pushed)[-1], "live")
    assert found["spans"] == [1, 2]
    assert [file["file"].split("/")[-3] for file in found["files"]] == ["span-1", "span-1", "span-2", "span-2"]
    assert all(len(file["sha256"]) == 64 for file in found["files"])
    assert found["trigger"].startswith("span:2.1:")
    assert [entry["event"] for entry in found["journal"]] == ["push"]


def test_span_leads_forward_to_every_version_that_saw_it_rolled_back_or_removed(pushed) -> None:
    first, second, third = numbers(pushed)
    versions.rollback(pushed.config.serving_dir)
    assert [(v["version"], v["state"]) for v in lineage.of_span(pushed.config, 1)] == [
        (second, "live"), (third, "rolled_back"),
    ]  # fmt: skip
    assert [v["version"] for v in lineage.of_span(pushed.config, 2)] == [third]
    assert lineage.of_span(pushed.config, 7) == []
    assert lineage.of_version(pushed.config, third)["state"] == "rolled_back"
    (pushed.config.serving_dir / str(first)).rename(pushed.folder / "away")
    assert lineage.of_version(pushed.config, first)["state"] == "removed"
    assert [(v["version"], v["state"]) for v in lineage.of_span(pushed.config, 0)] == [
        (first, "removed"), (second, "live"),
    ]  # fmt: skip


def test_span_leads_forward_to_refused_models_and_to_what_started_from_one_that_saw_it(make_project, capsys) -> None:
    """Spans 0, 1, 2, one a run; 0 saw nothing else, 1 was refused, 2 started from 0 and 3 from 2."""
    project = make_project()
    sources = {2: "/models/0/Format-Serving", 3: "/models/2/Format-Float32"}

    def run(request, stop, lock):
        record = project.run(request, stop, lock)
        source = sources.get(request.newest)
        training = {"warm_start": source and {"source": source, "tensors": 1}}
        records.write_record(project.root, {**record, "model": f"/models/{request.newest}", "training": training})
        return record

    gates = [{"gate": "g", "passed": False}]
    refused = {"status": "not_blessed", "gates": gates, "data": {"span": 1, "spans": [1], "files": []}}
    project.run.faults = {1: refused}
    scheduler = project.scheduler(start=run)
    for span in range(4):
        if span:
            project.add_span(span)
            project.pass_time(days=1)
        scheduler.look()
    first, third, fourth = numbers(project)
    (project.config.serving_dir / str(first)).rename(project.folder / "away")
    found = lineage.of_span(project.config, 0)
    assert [(entry["version"], entry["state"], entry["started_from"]) for entry in found] == [
        (first, "removed", []), (third, "kept", [first]), (fourth, "live", [third]),
    ]  # fmt: skip
    [entry] = lineage.of_span(project.config, 1)
    assert (entry["version"], entry["state"]) == (None, "refused")
    assert entry["run"] == records.read_records(project.root)[1]["run_id"]
    lineage.print_span(1, [entry], as_json=False)
    assert capsys.readouterr().out == f"no version  refused  run {entry['run']}\n"
    lineage.print_span(0, found[1:2], as_json=False)
    assert capsys.readouterr().out.endswith(f"  started from version {first}\n")


def test_version_that_made_room_for_newer_ones_still_leads_back_to_all_it_was_made_of(make_project) -> None:
    config = make_project().config
    model = config.root / "model"
    model.mkdir(parents=True)
    facts = {
        "run": {"configuration": {"task": "binary"}, "revision": "0a1b"}, "data": {"spans": [4]},
        "artifacts": {"model": {"id": 3, "uri": "/models/3"}}, "software": {"keras": "3"},
    }  # fmt: skip
    pushed = []
    for weights in "abc":
        (model / "saved_model.pb").write_text(weights)
        pushed.append(publish(model, config.serving_dir, 2, lambda number: dict(facts)).version)
    assert sorted(published(config.serving_dir)) == pushed[1:]
    found = lineage.of_version(config, pushed[0])
    assert (found["state"], found["path"], found["spans"]) == ("removed", None, [4])
    assert (found["configuration"], found["revision"]) == ({"task": "binary"}, "0a1b")
    assert (found["artifacts"], found["software"]) == (facts["artifacts"], facts["software"])
    assert [entry["event"] for entry in found["journal"]] == ["push", "remove"]
    assert [(v["version"], v["state"]) for v in lineage.of_span(config, 4)] == list(
        zip(pushed, ("removed", "kept", "live"), strict=True)
    )


def test_version_that_never_was_is_named_with_those_that_are(pushed) -> None:
    listed = ", ".join(map(str, numbers(pushed)))
    with pytest.raises(PushError, match=f"there is no version 7; those that there are: {listed}"):
        lineage.of_version(pushed.config, 7)


def test_no_version_yet(make_project) -> None:
    with pytest.raises(PushError, match="no version has been pushed yet"):
        lineage.of_version(make_project().config)


def test_printed_for_a_person_and_for_a_program(pushed, capsys) -> None:
    found = lineage.of_version(pushed.config)
    lineage.print_version(found, as_json=True)
    assert json.loads(capsys.readouterr().out) == found
    lineage.print_version(found, as_json=False)
    out = capsys.readouterr().out
    assert f"version {found['version']}  live" in out
    assert "spans        1, 2" in out
    assert "warm start   none" in out
    assert found["files"][0]["sha256"] in out
    known = {"configuration": {"task": "binary"}, "warm_start": {"source": "/models/[1]"}, "revision": "0a1b"}
    lineage.print_version({**found, **known}, as_json=False)
    out = capsys.readouterr().out
    assert '    {\n      "task": "binary"\n    }\n' in out
    assert "warm start   /models/[1]\n" in out
    assert "revision     0a1b\n" in out
    told = {"at": "now", "event": "rollback", "by": "me", "reason": "see [/ticket 4]"}
    gate = {"gate": "recall of Dose [mg] >= 0", "value": 0.5, "passed": True}
    lineage.print_version({**found, "journal": [told], "gates": [gate]}, as_json=False)
    out = capsys.readouterr().out
    assert "rollback  by me  see [/ticket 4]\n" in out
    assert "recall of Dose [mg] >= 0  value 0.5\n" in out
    lineage.print_span(1, lineage.of_span(pushed.config, 1), as_json=False)
    assert capsys.readouterr().out.count("version ") == 2
    lineage.print_span(9, [], as_json=False)
    assert capsys.readouterr().out == "no model has seen span 9\n"
