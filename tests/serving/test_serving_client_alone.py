"""The client's extra in an environment of its own: no TensorFlow, no numpy, against a running server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("tensorflow", "tensorflow_serving", "numpy", "keras", "pandas", "pydantic", "tfx")
SCRIPT = """
import json, sys
from serving.client import Client
import serving.aio
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split(",")))
import asyncio, importlib.util
texts = ["a", "a" * 90]
with Client(sys.argv[1], "m") as client:
    found = [p.label for p in client.predict(texts)]

async def ask():
    async with serving.aio.AsyncClient(sys.argv[1], "m") as client:
        return [p.label for p in await client.predict(texts)]

installed = [name for name in sys.argv[2].split(",") if importlib.util.find_spec(name)]
print(json.dumps({"heavy": heavy, "installed": installed, "sync": found,
                  "asyncio": asyncio.run(ask()), "file": serving.__spec__.submodule_search_locations[0]}))
"""


@pytest.mark.slow
def test_the_client_extra_installs_alone_and_predicts(serve, toys, wheel, environments, run, tmp_path):
    # The versions of the lock, so that the test does not change with the day.
    lock = tmp_path / "constraints.txt"
    lines = (ROOT / "deploy" / "bootstrap" / "requirements.txt").read_text().splitlines()
    lock.write_text("\n".join(line.split(" ")[0] for line in lines if "==" in line and not line.startswith(" ")))
    python = environments.make("-c", lock, f"{wheel}[client]")
    empty = tmp_path / "empty"
    empty.mkdir()
    running = serve(toys.text, model_name="m")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-P", "-c", SCRIPT, running.target, ",".join(HEAVY)]
    found = json.loads(run(*command, cwd=empty, env=plain).splitlines()[-1])
    assert found["heavy"] == []
    assert set(found["installed"]) <= {"pydantic"}  # which the base of the project needs
    assert found["sync"] == found["asyncio"] == ["short", "long"]
    assert str(python.parents[1]) in found["file"]
    assert (Path(found["file"]) / "py.typed").is_file()
