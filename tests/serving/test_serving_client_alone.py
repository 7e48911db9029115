"""The client's extra in an environment of its own: no TensorFlow, no numpy, against a running server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("tensorflow", "tensorflow_serving", "numpy", "keras", "pandas", "pydantic", "tfx")
SCRIPT = """
import json, sys, time
started = time.perf_counter()
from serving.client import Client
import serving.aio
seconds = time.perf_counter() - started
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split(",")))
import asyncio, importlib.util
texts = ["a", "a" * 90]
with Client(sys.argv[1], "m") as client:
    found = [p.label for p in client.predict(texts)]

async def ask():
    async with serving.aio.AsyncClient(sys.argv[1], "m") as client:
        return [p.label for p in await client.predict(texts)]

installed = [name for name in sys.argv[2].split(",") if importlib.util.find_spec(name)]
print(json.dumps({"seconds": round(seconds, 3), "heavy": heavy, "installed": installed, "sync": found,
                  "asyncio": asyncio.run(ask()), "file": serving.__spec__.submodule_search_locations[0]}))
"""


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_client_extra_installs_alone_and_predicts(serve, toys, tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    for folder in (source, empty):
        folder.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pipeline", "components", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "environment"
    run(sys._base_executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    # Where the checkout's interpreter runs on a private C library, so must this one.
    python.unlink()
    shutil.copy(Path(sys.executable), python)
    # The versions of the lock, so that the test does not change with the day.
    lock = tmp_path / "constraints.txt"
    lines = (ROOT / "deploy" / "bootstrap" / "requirements.txt").read_text().splitlines()
    lock.write_text("\n".join(line.split(" ")[0] for line in lines if "==" in line and not line.startswith(" ")))
    uv = ROOT / ".tools" / "venv" / "bin" / "uv"
    settings = {**os.environ, "UV_CACHE_DIR": str(ROOT / ".tools" / "cache"), "UV_NO_CONFIG": "1"}
    run(uv, "pip", "install", "--quiet", "--python", python, "-c", lock, f"{wheel}[client]", env=settings)
    running = serve(toys.text, model_name="m")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-P", "-c", SCRIPT, running.target, ",".join(HEAVY)]
    run(*command, cwd=empty, env=plain)  # compiles the bytecode
    found = json.loads(run(*command, cwd=empty, env=plain).splitlines()[-1])
    print(f"import of serving.client and serving.aio: {found['seconds']} s")
    assert found["heavy"] == []
    assert set(found["installed"]) <= {"pydantic"}  # which the base of the project needs
    assert found["sync"] == found["asyncio"] == ["short", "long"]
    assert str(environment) in found["file"]
    assert (Path(found["file"]) / "py.typed").is_file()
