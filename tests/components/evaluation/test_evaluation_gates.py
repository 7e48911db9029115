"""The gates as a table: bound, figures, verdict, message."""

import json
import math

import pytest

from components.config import Gate
from components.evaluation.gates import Figures, all_hold, check_gates

MODEL = Figures(
    {"macro_f1": 0.512, "accuracy": 0.8, "calibration_error": 0.05, "pr_auc": math.nan},
    {"OBJECTIVE": {"f1": 0.3, "precision": 0.25, "recall": 0.375}},
)
BASELINE = Figures({"macro_f1": 0.5, "accuracy": 0.81}, {"OBJECTIVE": {"f1": 0.1}})
BLESSED = Figures({"macro_f1": 0.52, "accuracy": 0.8, "calibration_error": 0.04})

TABLE = [
    (Gate(min=0.5), True, "macro_f1 0.512 holds its bound 0.500", "macro_f1 >= 0.5"),
    (Gate(min=0.6), False, "macro_f1 0.512 is below its bound 0.600", "macro_f1 >= 0.6"),
    (Gate(min=0.512), True, "macro_f1 0.512 holds its bound 0.512", "macro_f1 >= 0.512"),
    (
        Gate(metric="calibration_error", max=0.04),
        False,
        "calibration_error 0.050 is above its bound 0.040",
        "calibration_error <= 0.04",
    ),
    (Gate(metric="pr_auc", min=0.0), False, "pr_auc is missing or not a number", "pr_auc >= 0"),
    (Gate(metric="weighted_f1", max=1.0), False, "weighted_f1 is missing or not a number", "weighted_f1 <= 1"),
    (
        Gate(label="OBJECTIVE", measure="recall", min=0.4),
        False,
        "recall of OBJECTIVE 0.375 is below its bound 0.400",
        "recall of OBJECTIVE >= 0.4",
    ),
    (
        Gate(label="OBJECTIVE", measure="f1", min_gain_over_baseline=0.1),
        True,
        "f1 of OBJECTIVE 0.300 holds its bound 0.200 (baseline 0.100 + 0.100)",
        "f1 of OBJECTIVE >= baseline + 0.1",
    ),
    (
        Gate(min_gain_over_baseline=0.02),
        False,
        "macro_f1 0.512 is below its bound 0.520 (baseline 0.500 + 0.020)",
        "macro_f1 >= baseline + 0.02",
    ),
    (
        Gate(min_gain_over_blessed=-0.01),
        True,
        "macro_f1 0.512 holds its bound 0.510 (blessed 0.520 - 0.010)",
        "macro_f1 >= blessed - 0.01",
    ),
    (
        Gate(metric="accuracy", min_gain_over_blessed=0.0),
        True,
        "accuracy 0.800 holds its bound 0.800 (blessed 0.800 + 0.000)",
        "accuracy >= blessed + 0",
    ),
    (
        Gate(metric="calibration_error", min_gain_over_blessed=0.0),
        False,
        "calibration_error 0.050 is above its bound 0.040 (blessed 0.040 + 0.000)",
        "calibration_error <= blessed + 0",
    ),
    (
        Gate(metric="calibration_error", min_gain_over_blessed=-0.02),
        True,
        "calibration_error 0.050 holds its bound 0.060 (blessed 0.040 + 0.020)",
        "calibration_error <= blessed + 0.02",
    ),
    (
        Gate(label="OBJECTIVE", measure="f1", min_gain_over_blessed=0.0),
        False,
        "f1 of OBJECTIVE 0.300 cannot be compared: the blessed model's figure is missing",
        "f1 of OBJECTIVE >= blessed + 0",
    ),
]


@pytest.mark.parametrize(("gate", "passed", "message", "text"), TABLE)
def test_gate(gate, passed, message, text):
    (bound,) = check_gates([gate], MODEL, baseline=BASELINE, blessed=BLESSED)
    assert (bound.passed, bound.message, bound.gate) == (passed, message, text)
    assert all_hold([bound]) is passed
    json.dumps(bound.to_json(), allow_nan=False)


def test_every_bound_of_a_gate_is_checked_in_order():
    gate = Gate(min=0.5, max=0.9, min_gain_over_baseline=0.0, min_gain_over_blessed=0.0)
    bounds = check_gates([gate, Gate(metric="accuracy", min=0.1)], MODEL, baseline=BASELINE, blessed=BLESSED)
    assert [bound.kind for bound in bounds] == ["min", "max", "baseline", "blessed", "min"]
    assert [bound.passed for bound in bounds] == [True, True, True, False, True]
    assert not all_hold(bounds)


def test_without_a_blessed_model_the_gate_passes_and_says_so():
    (bound,) = check_gates([Gate(min_gain_over_blessed=0.0)], MODEL)
    assert bound.passed
    assert bound.message == "macro_f1 0.512: there is no blessed model to compare with yet"
    assert (bound.bound, bound.value, bound.reference) == (None, 0.512, None)


def test_without_a_blessed_model_a_missing_figure_still_fails():
    (bound,) = check_gates([Gate(metric="pr_auc", min_gain_over_blessed=0.0)], MODEL)
    assert (bound.passed, bound.message) == (False, "pr_auc is missing or not a number")


def test_a_blessed_model_that_cannot_be_scored_fails_the_gate():
    (bound,) = check_gates([Gate(min_gain_over_blessed=0.0)], MODEL, blessed_problem="it does not answer")
    assert (bound.passed, bound.message) == (False, "macro_f1 cannot be compared: it does not answer")


def test_a_baseline_that_was_not_scored_fails_the_gate():
    (bound,) = check_gates([Gate(min_gain_over_baseline=0.0)], MODEL)
    assert (bound.passed, bound.message) == (
        False,
        "macro_f1 0.512 cannot be compared: the baseline's figure is missing",
    )


def test_no_gate_blesses():
    assert all_hold(check_gates([], MODEL))
