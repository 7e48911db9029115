"""What the set-up says where something is missing; whole set-ups are tried by deploy/bootstrap/try_debian13.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = os.path.realpath("{}/bin/python{}.{}".format(sys.base_prefix, *sys.version_info))  # of no environment
TOOLS = ("bash", "env", "dirname", "sha256sum", "cut", "cat", "awk", "getconf", "uname", "make", "g++", "c++")


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
    script.write_text(f'#!{shutil.which("bash")}\n{body}\nexec {INTERPRETER} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_everything_that_is_missing_is_named_at_once(machine) -> None:
    said, status = machine("make", "g++", "c++")
    assert status == 1
    assert "Python 3.11, 3.12 or 3.13 (apt-get install python3, or set PYTHON=" in said
    assert "a C++ compiler (apt-get install g++, or set CXX)" in said
    assert "make (apt-get install make)" in said
    assert said.endswith("install the above, then call again; nothing has been changed.\n")


def test_python_without_venv(machine, tmp_path: Path) -> None:
    said, status = machine(PYTHON=python_that(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac'))
    assert status == 1
    assert "apt-get install python3-venv" in said
    assert "headers" not in said


def test_python_without_headers(machine, tmp_path: Path) -> None:
    said, status = machine(PYTHON=python_that(tmp_path, 'case "$2" in *get_path*) echo /nowhere; exit;; esac'))
    assert status == 1
    assert "apt-get install python3-dev" in said
    assert "venv" not in said.replace(".venv", "")


def test_python_of_another_version(machine, tmp_path: Path) -> None:
    spoilt = python_that(tmp_path, 'case "$2" in *"(3, 11)"*) exit 1;; esac')
    said, status = machine(PYTHON=spoilt)
    assert status == 1
    assert f"PYTHON={spoilt} does not give one" in said


@pytest.mark.parametrize(
    ("without", "settings", "said"),
    [
        (("g++",), {}, None),  # any will do: here c++
        (("g++", "c++"), {}, "a C++ compiler (apt-get install g++, or set CXX)"),
        ((), {"CXX": "nowhere++ -O2"}, "a C++ compiler (CXX=nowhere++ -O2 does not give one; apt-get install g++"),
        (("g++", "c++"), {"CXX": "cat -O2"}, None),
    ],
)
def test_compiler_is_the_one_that_builds(
    machine, tmp_path: Path, without: tuple[str, ...], settings: dict[str, str], said: str | None
) -> None:
    """Make is missing as well, so that nothing is begun."""
    messages, status = machine("make", *without, PYTHON=sys.executable, **settings)
    assert (status, "make (apt-get install make)" in messages) == (1, True)
    assert said in messages if said else "compiler" not in messages


def test_checkout_and_python_may_have_spaces_in_their_paths(tmp_path: Path) -> None:
    """The whole of it, with stand-ins for Python, pip and uv: what uv is asked for, and what it reads besides."""
    checkout, tools = tmp_path / "Studie (1) check out", tmp_path / "own python"
    shutil.copytree(ROOT / "deploy" / "bootstrap", checkout / "deploy" / "bootstrap")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    tools.mkdir()
    for name, body in {
        "getconf": "echo glibc 2.39",
        "uv": 'printf "%s\\n" "$*" >> calls; [ -z "${UV_BUILD_CONSTRAINT:-}" ] || echo split >> calls',
        "python3": '[ "$1 $2" != "-m venv" ] || { for last; do :; done; mkdir -p "$last/bin"; '
        'cp "$0" "$last/bin/python"; cp "${0%/*}/uv" "$last/bin/"; exit; }; case "$*" in *get_path*) dirname '
        '"$0";; esac',
        "Python.h": "",
    }.items():
        (tools / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tools / name).chmod(0o755)
    subprocess.run(
        [checkout / "deploy" / "bootstrap" / "bootstrap.sh"], check=True, capture_output=True,
        env={"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python3"), "UV_BUILD_CONSTRAINT": "mine"},
    )  # fmt: skip
    installs = (checkout / "calls").read_text().splitlines()
    pins = checkout / "deploy" / "bootstrap" / "build.txt"
    assert installs[0].endswith(f"-r {checkout}/deploy/bootstrap/requirements.txt --build-constraints {pins}")
    assert installs[1].endswith("--editable .")
    assert len(installs) == 2


def test_second_call_does_nothing_whatever_environment_is_activated(tmp_path: Path) -> None:
    """Were .venv, activated, taken for the interpreter to make it from, it would be deleted with nothing to follow."""
    checkout, tools, other = tmp_path / "checkout", tmp_path / "tools", tmp_path / "other"
    shutil.copytree(ROOT / "deploy" / "bootstrap", checkout / "deploy" / "bootstrap")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    tools.mkdir()
    of_tools = (
        f"mkdir -p .tools/venv/bin; cp {tools}/uv .tools/venv/bin/; cp {shutil.which('true')} .tools/venv/bin/python"
    )
    for name, body in {
        "getconf": "echo glibc 2.39",
        "uv": f"echo $1 >> {checkout}/calls",
        "python3": f'[ "$*" != "-m venv .tools/venv" ] || {{ {of_tools}; exit; }}; exec {INTERPRETER} "$@"',
    }.items():
        (tools / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tools / name).chmod(0o755)
    subprocess.run([INTERPRETER, "-m", "venv", "--without-pip", other], check=True)
    copied = tmp_path / "copied"
    subprocess.run([INTERPRETER, "-m", "venv", "--without-pip", copied], check=True)
    (copied / "bin" / "python").unlink()
    shutil.copy(INTERPRETER, copied / "bin" / "python")  # as where the C library is a private one
    (copied / "bin" / "python3").unlink(missing_ok=True)
    (copied / "bin" / "python3").symlink_to("python")

    def calls_after(activated: Path) -> list[str]:
        subprocess.run(
            [checkout / "deploy" / "bootstrap" / "bootstrap.sh"], check=True, capture_output=True, timeout=60,
            env={"PATH": f"{activated}:{tools}:{os.environ['PATH']}"},
        )  # fmt: skip
        return (checkout / "calls").read_text().splitlines()

    for activated in (tools, tools, checkout / ".venv" / "bin", other / "bin", copied / "bin"):
        assert calls_after(activated) == ["pip", "pip"], activated
    (checkout / ".venv" / "bootstrap.stamp").unlink()
    for name in ("python", "python3"):
        (checkout / ".venv" / "bin" / name).unlink()
        shutil.copy(copied / "bin" / name, checkout / ".venv" / "bin" / name, follow_symlinks=False)
    assert calls_after(checkout / ".venv" / "bin") == ["pip"] * 4


def test_uv_takes_pins_of_builds_from_a_folder_with_a_space(environments, tmp_path: Path) -> None:
    pins = shutil.copytree(ROOT / "deploy" / "bootstrap", tmp_path / "check out") / "build.txt"
    environments.install(Path(sys.executable), "--dry-run", "--offline", "--build-constraints", pins, "tfx")


# ---- the private C library ----

NAMED = ("run on Debian 13, Ubuntu 24.04 or newer", "use the container image", ".runtime/debs and call again")
ARCHIVE_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ({}, "dpkg-deb is not on this system"),
        ({"dpkg-deb": ""}, "apt-get is not on this system"),
        ({"dpkg-deb": "", "apt-get": ""}, "apt names no Debian mirror"),
        ({"dpkg-deb": "", "apt-get": 'case "$*" in *indextargets*) echo m trixie;; *update*) exit 1;; esac'},
         "apt-get update against this machine's mirror failed (see above)"),
        ({"dpkg-deb": "", "apt-get": 'case "$*" in *indextargets*) echo m trixie;; *download*) exit 1;; esac'},
         "apt-get could not download libc6 libstdc++6 libgcc-s1 (see above)"),
        ({"dpkg-deb": "", "apt-get": "echo m trixie"}, "the packages hold no ld-linux-x86-64.so.2"),
    ],
)  # fmt: skip
def test_private_c_library_that_cannot_be_made_is_one_message_with_the_ways_out(
    tmp_path: Path, tools: dict[str, str], reason: str
) -> None:
    if "apt-get" in tools and not ARCHIVE_KEYS.exists():
        pytest.skip(f"{ARCHIVE_KEYS} is not on this system")
    folder, checkout = tmp_path / "bin", tmp_path / "checkout"
    folder.mkdir()
    shutil.copytree(ROOT / "deploy" / "bootstrap", checkout / "deploy" / "bootstrap")
    for tool in ("bash", "getconf", "cat", "mkdir", "find", "wc", "awk", "head", "rm"):
        (folder / tool).symlink_to(shutil.which(tool))
    for tool, body in tools.items():
        (folder / tool).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (folder / tool).chmod(0o755)
    done = subprocess.run(
        [folder / "bash", checkout / "deploy" / "bootstrap" / "runtime.sh", checkout, sys.executable],
        env={"PATH": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"a private one cannot be made here: {reason}." in done.stderr
    assert all(way in done.stderr for way in NAMED)
    assert done.stderr.endswith("Nothing outside this checkout has been changed.\n")
    assert {path.name for path in checkout.iterdir()} <= {"deploy", ".runtime"}


# ---- the index ----


@pytest.mark.parametrize(
    ("own", "default"),
    [
        ({}, "https://pip.invalid/simple"),
        ({"UV_INDEX_URL": "https://uv.invalid/simple"}, None),
        ({"UV_DEFAULT_INDEX": "https://uv.invalid/simple"}, "https://uv.invalid/simple"),
    ],
)
def test_environments_of_tests_and_airflows_take_pips_index_where_uv_has_none(
    own: dict[str, str], default: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_HTTP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PIP_INDEX_URL": "https://pip.invalid/simple", **own}.items():
        monkeypatch.setenv(name, value)
    checkout, seen = tmp_path / "checkout", tmp_path / "seen"
    monkeypatch.setenv("PYTHON", shutil.which("true"))  # one that Airflow runs on need not be here
    (checkout / ".tools" / "venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "deploy" / "airflow", checkout / "deploy" / "airflow")
    uv = checkout / ".tools" / "venv" / "bin" / "uv"
    uv.write_text(f"#!/bin/sh\nenv > {seen}; mkdir -p {checkout}/.tools/airflow\n")
    uv.chmod(0o755)
    subprocess.run([checkout / "deploy" / "airflow" / "environment.sh"], check=True, capture_output=True)
    airflow = dict(line.split("=", 1) for line in seen.read_text().splitlines() if line.startswith("UV_"))
    for settings in (airflow, request.getfixturevalue("environments").settings):
        assert (settings.get("UV_DEFAULT_INDEX"), settings["UV_HTTP_TIMEOUT"]) == (default, "180")
        assert settings.get("UV_INDEX_URL") == own.get("UV_INDEX_URL")


def test_airflows_environment_is_made_once_and_anew_where_the_checkout_has_moved(tmp_path: Path) -> None:
    checkout, calls = tmp_path / "checkout", tmp_path / "calls"
    shutil.copytree(ROOT / "deploy" / "airflow", checkout / "deploy" / "airflow")
    uv = checkout / ".tools" / "venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nfor last; do :; done\n[ "$1" != venv ] || mkdir -p "$last"\n')
    uv.chmod(0o755)
    environment = {**os.environ, "PYTHON": shutil.which("true")}
    for moved in (False, True):
        if moved:
            checkout = checkout.rename(tmp_path / "elsewhere")
        for _ in range(2):
            command = [checkout / "deploy" / "airflow" / "environment.sh"]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            assert done.stdout == f"{checkout}/.tools/airflow/bin/airflow\n"
        made = [line for line in calls.read_text().splitlines() if line.startswith("venv")]
        assert len(made) == 1 + moved
        assert made[-1].endswith(f" {checkout}/.tools/airflow")


def test_airflow_names_the_pythons_that_it_runs_on(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy" / "airflow", checkout / "deploy" / "airflow")
    uv = checkout / ".tools" / "venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.symlink_to(shutil.which("true"))
    done = subprocess.run(
        [checkout / "deploy" / "airflow" / "environment.sh"], env={**os.environ, "PYTHON": shutil.which("false")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.10, 3.11 or 3.12" in done.stderr
    assert "set PYTHON=/path/to/python3.12" in done.stderr
