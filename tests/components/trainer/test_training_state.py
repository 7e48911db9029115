"""Checkpoint files: read back to the bit, and whole or absent."""

import numpy as np
import pytest

from components.errors import CheckpointError
from components.trainer import state


def test_arrays_and_progress_read_back_in_order(tmp_path):
    arrays = {
        "model": [np.full(2, n, np.float32) for n in range(12)],
        "optimizer": [np.int64(7), np.array([1.5, -0.0], np.float32)],
        "best": [],
    }
    state.save(str(tmp_path / "run"), arrays, {"epoch": 3, "history": [{"loss": 0.1}]})
    found, progress = state.load(str(tmp_path / "run"))
    assert progress == {"epoch": 3, "history": [{"loss": 0.1}]}
    assert [array.tolist() for array in found["model"]] == [[n, n] for n in range(12)]
    assert found["optimizer"][0] == 7
    assert found["optimizer"][1].tobytes() == arrays["optimizer"][1].tobytes()
    assert "best" not in found


def test_a_write_that_was_cut_off_leaves_the_one_before(tmp_path):
    state.save(str(tmp_path), {"model": [np.ones(3)]}, {"step": 1})
    (tmp_path / "checkpoint.npz.partial").write_bytes(b"half of a newer one")
    assert state.load(str(tmp_path))[1] == {"step": 1}


def test_no_checkpoint_is_none(tmp_path):
    assert state.load(str(tmp_path / "absent")) is None


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_damaged_file_is_named(tmp_path, keep):
    state.save(str(tmp_path), {"model": [np.ones(300)]}, {"step": 1})
    file = tmp_path / "checkpoint.npz"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz"):
        state.load(str(tmp_path))


def test_removing_takes_the_folder_and_may_be_repeated(tmp_path):
    state.save(str(tmp_path / "run"), {}, {})
    state.remove(str(tmp_path / "run"))
    state.remove(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
