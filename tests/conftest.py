"""For all tests: TensorFlow's C++ side keeps its warnings, which can quote data, to itself, and Keras writes nothing to
the home folder, as in a pipeline run; weights drawn for a test are the same in every run of it."""

import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_HOME", os.devnull)

# What starts a model server, a Beam run or a whole training run is no unit test: `make check` leaves it out.
SERVERS = {"serve", "spawn"}
BEAM_RUNS = {"multiclass", "workshop", "sections", "transform"}
TRAINING_RUNS = {"fn_args"}


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (SERVERS | BEAM_RUNS | TRAINING_RUNS) & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def _seed() -> None:
    if keras := sys.modules.get("keras"):  # a test that does not import it should not wait for it
        keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def seeded_module() -> None:
    _seed()


@pytest.fixture(autouse=True)
def seeded(seeded_module: None) -> None:
    _seed()


def pytest_unconfigure() -> None:
    gc.freeze()  # Beam and TensorFlow in one process: the interpreter's last collection ends in a segmentation fault
