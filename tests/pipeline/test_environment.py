"""What is settled before a command starts."""

import os
import tempfile
from pathlib import Path

import pytest

from pipeline.environment import library_settings


def test_user_without_a_home_gets_one_that_libraries_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HOME" not in library_settings()
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user who is not in passwd
    with pytest.raises(RuntimeError):
        Path.home()
    assert library_settings()["HOME"] == tempfile.gettempdir()
