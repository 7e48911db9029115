"""A model is known again by what it computes: two exports of it differ in their bytes, not in their digest."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

from components.errors import PushError
from components.push.graph import graph_digest


class Doubles(tf.Module):
    """A loop over rows, a branch, and functions that call others."""

    def __init__(self, step: float = 2.0, swapped: bool = False) -> None:
        super().__init__()
        self.step = step
        self.swapped = swapped
        self.weight = tf.Variable([1.0, 2.0])

    @tf.function(autograph=False)
    def up(self, x):
        return x + self.step

    @tf.function(autograph=False)
    def down(self, x):
        return x - self.step

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def serve(self, rows):
        first, second = (self.down, self.up) if self.swapped else (self.up, self.down)
        rows = tf.map_fn(lambda row: second(row) * self.weight, rows)
        return {"score": tf.cond(tf.shape(rows)[0] > 1, lambda: first(rows), lambda: rows)}


def export(folder: Path, **settings: float) -> Path:
    model = Doubles(**settings)
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})
    return folder / "saved_model.pb"


def test_model_that_is_exported_anew_has_the_same_digest(tmp_path: Path) -> None:
    first, second = export(tmp_path / "1"), export(tmp_path / "2")
    assert first.read_bytes() != second.read_bytes()
    assert graph_digest(first) == graph_digest(second)


@pytest.mark.parametrize("settings", [{"step": 3.0}, {"swapped": True}])
def test_model_that_computes_something_else_has_another(tmp_path: Path, settings: dict[str, float]) -> None:
    assert graph_digest(export(tmp_path / "1")) != graph_digest(export(tmp_path / "2", **settings))


def test_signature_is_part_of_it(tmp_path: Path) -> None:
    model = Doubles()
    tf.saved_model.save(model, str(tmp_path / "2"), signatures={"other": model.serve})
    assert graph_digest(export(tmp_path / "1")) != graph_digest(tmp_path / "2" / "saved_model.pb")


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 9)
    with pytest.raises(PushError, match="is not a SavedModel"):
        graph_digest(tmp_path / "saved_model.pb")
