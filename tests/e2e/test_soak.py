"""A short month with real runs: three spans, one of them corrupt, one kill. `make soak` does thirty days and twenty."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def load_soak():
    path = Path(__file__).with_name("soak.py")
    spec = importlib.util.spec_from_file_location("soak", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_three_days_with_a_fault_and_a_kill_end_as_they_do_without_it(tmp_path: Path) -> None:
    assert load_soak().soak(tmp_path, days=3, kills=1, seed=1) == []
