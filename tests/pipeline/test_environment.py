"""What is settled before a command starts."""

import os
import tempfile
from pathlib import Path

import pytest

from pipeline.environment import library_settings


def test_user_without_a_home_gets_one_that_libraries_can_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert "HOME" not in library_settings()
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user who is not in passwd
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError):
        Path.home()
    home = Path(library_settings()["HOME"])
    assert home == Path(library_settings()["HOME"])
    assert (home.parent, home.stat().st_mode & 0o777) == (tmp_path, 0o700)
    home.chmod(0o777)  # as another's would be
    assert Path(library_settings()["HOME"]) != home


def test_onednn_is_asked_for_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert library_settings()["TF_ENABLE_ONEDNN_OPTS"] == "1"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert library_settings()["TF_ENABLE_ONEDNN_OPTS"] == "0"
