"""The gates of a low precision: which rows, metrics and slices they look at, and that the step enforces them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from components.config import EvaluationConfig, ExportConfig, Gate
from components.evaluation.gates import Figures
from components.evaluation.precision import check_precision
from components.evaluation.report import Predictions
from components.export.paths import float32_dir

LABELS = ("A", "B")
BOUNDS = ExportConfig(precision="int8", min_agreement=0.9, max_loss=0.05, min_slice_agreement=0.8, min_slice_rows=5)


def predictions(decided, slices):
    decision = np.eye(2, dtype=bool)[decided]
    rows = len(decided)
    return Predictions(np.arange(rows), decision, decision, np.zeros((rows, 2), np.float32), slices, 0)


def figures(**accuracy):
    """Slice figures whose macro-F1 is their accuracy; `all` is the whole split."""
    names = {"" if name == "all" else name.replace("_", "="): value for name, value in accuracy.items()}
    return {name: (10, Figures({"accuracy": value, "macro_f1": value})) for name, value in names.items()}


def test_what_holds_is_said_with_value_and_bound_and_small_slices_decide_nothing():
    slices = [["j=x"]] * 6 + [["j=y"]] * 4
    model, whole = figures(all=0.8, j_x=0.7, j_y=0.1), figures(all=0.84, j_x=0.7, j_y=0.9)
    bounds = check_precision(BOUNDS, model, whole, predictions([0] * 10, slices), predictions([0] * 9 + [1], slices))
    assert [(b.gate, b.value, b.bound, b.passed) for b in bounds] == [
        ("agreement with float32 >= 0.9", 0.9, 0.9, True),
        ("accuracy >= float32 - 0.05", 0.8, pytest.approx(0.79), True),
        ("macro_f1 >= float32 - 0.05", 0.8, pytest.approx(0.79), True),
        ("agreement with float32 in every slice >= 0.8", 1.0, 0.8, True),
        ("accuracy in every slice >= float32 - 0.03", 0.7, pytest.approx(0.67), True),
    ]
    assert {b.kind for b in bounds} == {"float32"}


def test_the_worst_slice_is_named():
    slices = [["j=x"]] * 5 + [["j=y"]] * 5
    model, whole = figures(all=0.8, j_x=0.9, j_y=0.7), figures(all=0.8, j_x=0.85, j_y=0.75)
    decided = [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    bounds = check_precision(BOUNDS, model, whole, predictions(decided, slices), predictions([0] * 10, slices))
    assert [b.passed for b in bounds] == [False, True, True, False, False]
    assert bounds[0].message == "agreement with float32 0.7000 is below its bound 0.9000"
    assert bounds[3].message == "agreement with float32 in j=x 0.6000 is below its bound 0.8000"
    assert bounds[4].message == "accuracy in j=y 0.7000 is below its bound 0.7200 (float32 0.7500 - 0.03)"


@pytest.mark.parametrize(("least", "blessed"), [(0.93, False), (0.92, True)])
def test_a_low_precision_is_blessed_only_if_it_decides_as_float32_does(workshop, least, blessed):
    names = [f"text {n}" for n in range(40)]
    truth = np.arange(40) % 2
    right = np.where(np.eye(2)[truth] == 1, 0.9, 0.1)
    wrong = right.copy()
    wrong[:3] = 1 - wrong[:3]
    rows = [{"text": name, "label": LABELS[n]} for name, n in zip(names, truth, strict=True)]
    examples = workshop.examples({"train": rows[:4], "eval": rows[:4], "test": rows})
    model, float32 = (workshop.model(dict(zip(names, p.tolist(), strict=True)), LABELS) for p in (wrong, right))
    shutil.copytree(Path(float32.uri) / "Format-Serving", float32_dir(f"{model.uri}/Format-Serving"))
    config = EvaluationConfig(length_bounds=(), bootstrap_samples=0, baseline=False, gates=(Gate(min=0.9),))
    export = ExportConfig(
        precision="bfloat16", min_agreement=least, max_loss=0.08, min_slice_rows=20, min_slice_agreement=0.9,
        max_slice_loss=0.1,
    )  # fmt: skip
    # Where there is a live model, it is scored as well.
    live = float32 if blessed else None
    result = workshop.evaluate(examples, model, "binary", LABELS, config, blessed=live, export=export)
    assert result.files == ["BLESSED" if blessed else "NOT_BLESSED"]
    found = [(gate["gate"], gate["value"], gate["passed"]) for gate in result.gates["gates"]]
    assert found[1] == (f"agreement with float32 >= {least}", 0.925, blessed)
    assert found[2] == ("accuracy >= float32 - 0.08", 0.925, True)
    assert found[4] == ("agreement with float32 in every slice >= 0.9", 0.9, True)
    assert result.metrics["float32"]["accuracy"] == 1.0
    assert result.metrics["model"]["accuracy"]["value"] == 0.925
