"""tests/benchmarks/model_server.py: what it holds the server to. The measurements themselves are not taken here."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest

CARRIED = 100.0  # requests/s


@pytest.fixture
def benchmark(monkeypatch):
    """The module; that it finds the one beside it is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = Path(__file__).parents[1] / "benchmarks" / "model_server.py"
    spec = importlib.util.spec_from_file_location("serving_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answered", "of_bound", "refused_ms", "holds"),
    [
        (90.0, 1.0, 100.0, True), (89.0, 0.5, 10.0, False), (100.0, 1.01, 10.0, False), (100.0, 0.5, 101.0, False),
        (50.0, 1.5, 10.0, False),  # a server that answers half is not given twice the time
        (100.0, 0.5, None, False),  # nothing was refused: this was no overload
    ],
)  # fmt: skip
def test_overload_is_judged_by_the_rate_that_can_be_carried(
    benchmark, monkeypatch, tmp_path, answered, of_bound, refused_ms, holds
):
    bound_ms = benchmark.BOUND_IN_BATCHES * 32 / 8 / CARRIED * 1e3

    class Load:
        def __init__(self, **job):
            self._overload = "rate" in job
            assert job.get("rate", 2 * CARRIED) == 2 * CARRIED

        def run(self):
            if not self._overload:
                return {"answered": 4 * CARRIED, "refused": 0, "seconds": 4.0}
            return {
                "answered_per_s": answered, "latency_ms": {"p99": of_bound * bound_ms},
                "refused_or_failed_ms": {"p99": refused_ms},
            }  # fmt: skip

    monkeypatch.setattr(benchmark, "Load", Load)
    monkeypatch.setattr(benchmark, "Server", lambda *flags: contextlib.nullcontext("target"))
    found = benchmark.measure_overload(tmp_path, tmp_path, 4.0, 8, 32, 8, [])
    assert (found["holds"], found["bound_ms"]) == (holds, round(bound_ms, 1))


@pytest.mark.parametrize("holds", [True, False])
def test_a_bound_that_does_not_hold_fails_the_benchmark(benchmark, monkeypatch, capsys, holds):
    monkeypatch.setattr(benchmark, "measure_client", lambda: {"holds": holds})
    monkeypatch.setattr(sys, "argv", ["serving.py", "--measure=client"])
    assert benchmark.main() == (0 if holds else 1)
    assert f'"holds": {str(holds).lower()}' in capsys.readouterr().out
