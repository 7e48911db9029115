"""What can befall a pipeline root from outside: each time a clear error, nothing lost, and a sound next run."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(project) -> Iterator[Path]:
    """The pipeline root on a file system of its own, of 3 MiB; `mount -o remount` makes it larger."""
    project.root.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(project.root)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs the rights of root")
    yield project.root
    subprocess.run(["umount", "--lazy", str(project.root)], check=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pipeline root stays when its small disk goes."""
    return tmp_path_factory.mktemp("kept") / "root"


@pytest.fixture
def pushed(project, kept: Path) -> int:
    """The version that is there: that of the small disk, where it was tried."""
    if kept.exists():
        shutil.copytree(kept, project.root, dirs_exist_ok=True)
        shutil.rmtree(kept)
    done = project.run()
    assert done.status == 0, done.stderr
    return done.json["version"]


def test_disk_that_fills_up_is_named_and_the_next_run_goes_on(project, small_disk: Path, kept: Path) -> None:
    refused = project.run()
    assert refused.status == 1
    assert "retention.min_free_mb = 512; nothing was started" in refused.stderr
    filled = project.run("retention.min_free_mb=0")
    assert filled.status == 1
    assert "the disk is full" in filled.stderr or "No space left on device" in filled.stderr
    assert "Traceback" not in filled.stderr
    assert project.versions == []
    subprocess.run(["mount", "-o", "remount,size=900m", str(small_disk)], check=True)
    done = project.run()
    assert done.status == 0, done.stderr
    assert project.versions == [done.json["version"]]
    with contextlib.closing(sqlite3.connect(small_disk / "metadata.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shutil.copytree(small_disk, kept)


def versions_of_runs(project) -> list[int | None]:
    """What `history` says of each run."""
    project.start([*project.command("history"), "--json"])
    done = project.wait()
    assert done.status == 0, done.stderr
    return [run["version"] for run in done.json["runs"]]


def test_metadata_that_another_process_holds_is_named_and_the_next_run_is_sound(project, pushed: int) -> None:
    other = "evaluation.gates=[{ metric = 'accuracy', min = 0.1 }]"
    known = versions_of_runs(project)
    assert known[-1] == pushed
    database = project.root / "metadata.sqlite"
    code = (
        "import sqlite3, sys, time\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "database.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(database)], stdout=subprocess.PIPE) as holder:
        try:
            holder.stdout.readline()
            held = project.run(other)
            told = versions_of_runs(project)
        finally:
            holder.kill()
    assert held.status == 1
    assert "metadata.sqlite: another process holds it" in held.stderr
    assert told == [*known, None]
    assert "Traceback" not in held.stderr
    assert project.versions == [pushed]
    after = project.run(other)
    assert after.status == 0, after.stderr
    copies = sorted((project.root / "backups").iterdir())
    assert copies, "a copy of the metadata was made before the run"
    with contextlib.closing(sqlite3.connect(copies[-1])) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def read_only(project) -> Iterator[Path]:
    """The pipeline root of a run that has ended, on a file system that nobody can write to; it can be taken away."""
    project.root.mkdir(exist_ok=True)
    if subprocess.run(["mount", "--bind", str(project.root), str(project.root)], check=False).returncode != 0:
        pytest.skip("mounting a folder read-only needs the rights of root")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(project.root)], check=True)
    yield project.root
    # `os.path.ismount` does not see a folder that is mounted on itself.
    while subprocess.run(["umount", "--lazy", str(project.root)], capture_output=True, check=False).returncode == 0:
        pass


def test_root_that_is_read_only_is_named_and_the_next_run_is_sound(project, read_only: Path) -> None:
    before = project.versions
    for options in ((), ("schedule.on_new_span=true",)):
        command = project.command("schedule", "once", overrides=options) if options else project.command("run")
        project.start(command)
        refused = project.wait()
        assert refused.status == 1
        assert f"{read_only} cannot be written (Read-only file system)" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert project.versions == before
    subprocess.run(["umount", str(read_only)], check=True)
    done = project.run("training.seed=2", "evaluation.gates=[{ metric = 'accuracy', min = 0.0 }]")
    assert done.status == 0, done.stderr
    assert project.versions == [*before, done.json["version"]]


def test_records_of_the_future_do_not_disturb_when_the_clock_was_set_back(project) -> None:
    """As a root looks whose last run was made with the clock a year ahead."""
    runs = project.root / "runs"
    newest = max(runs.iterdir())
    ahead = newest.read_text().replace(newest.stem, "20991231T000000")
    (runs / "20991231T000000.json").write_text(ahead)
    number = project.versions[-1]
    os.rename(project.serving_dir / str(number), project.serving_dir / "4102358400")  # the same moment
    done = project.run("training.seed=3", "evaluation.gates=[{ metric = 'accuracy', min = 0.2 }]")
    assert done.status == 0, done.stderr
    assert done.json["run_id"] == "20991231T000000-0001"
    assert done.json["version"] == 4102358401 == project.versions[-1]
