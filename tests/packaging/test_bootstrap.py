"""What the set-up says where something is missing; whole set-ups are tried by deploy/bootstrap/try_debian13.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "env", "dirname", "sha256sum", "cut", "cat", "awk", "getconf", "uname", "make", "g++")


@pytest.fixture
def machine(tmp_path: Path):
    """Runs the bootstrap of a bare checkout: `machine(without, PYTHON=…)` → its messages and exit status."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy" / "bootstrap", checkout / "deploy" / "bootstrap")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    before = sorted(checkout.rglob("*"))

    def call(*without: str, **settings: str) -> tuple[str, int]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if tool not in without and found:
                (folder / tool).symlink_to(found)
        done = subprocess.run(
            [folder / "bash", checkout / "deploy" / "bootstrap" / "bootstrap.sh"],
            env={"PATH": str(folder), **settings}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert sorted(checkout.rglob("*")) == before, "nothing has been changed"
        return done.stderr, done.returncode

    return call


def python_that(folder: Path, body: str) -> str:
    """An interpreter of which `body`, shell, spoils something: `$2` is the code that it is asked to run."""
    script = folder / "python-spoilt"
    script.write_text(f'#!{shutil.which("bash")}\n{body}\nexec {os.path.realpath(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_everything_that_is_missing_is_named_at_once(machine) -> None:
    said, status = machine("make", "g++")
    assert status == 1
    assert "Python 3.11, 3.12 or 3.13 (apt-get install python3, or set PYTHON=" in said
    assert "a C++ compiler (apt-get install g++)" in said
    assert "make (apt-get install make)" in said
    assert said.endswith("install the above, then call again; nothing has been changed.\n")


def test_python_without_venv(machine, tmp_path: Path) -> None:
    said, status = machine(PYTHON=python_that(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac'))
    assert status == 1
    assert "apt-get install python3-venv" in said
    assert "headers" not in said


def test_python_without_headers(machine, tmp_path: Path) -> None:
    said, status = machine(PYTHON=python_that(tmp_path, 'case "$2" in *sysconfig*) echo /nowhere; exit;; esac'))
    assert status == 1
    assert "apt-get install python3-dev" in said
    assert "venv" not in said.replace(".venv", "")


def test_python_of_another_version(machine, tmp_path: Path) -> None:
    spoilt = python_that(tmp_path, 'case "$2" in *"(3, 11)"*) exit 1;; esac')
    said, status = machine(PYTHON=spoilt)
    assert status == 1
    assert f"PYTHON={spoilt} does not give one" in said
