"""The classifier on Keras's other backends: the same answers and gradients as on TensorFlow."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".tools" / "peers"
SCRIPT = Path(__file__).with_name("backend_step.py")
LOCK = ROOT / "deploy" / "bootstrap" / "requirements.txt"


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    """A file of every classifier's weights, and what a step with them gives on TensorFlow."""
    script = runpy.run_path(str(SCRIPT))
    rng, weights, expected = np.random.default_rng(1), {}, {}
    for name in script["MODELS"]:
        model, batch = script["build"](name)
        for n, variable in enumerate(model.weights):  # no bias stays 0, no gamma 1
            variable.assign(variable.numpy() + rng.uniform(0, 0.05, variable.shape))
            weights[f"{name}/{n}"] = variable.numpy()
        expected |= {f"{name}/{key}": value for key, value in script["step"](model, batch).items()}
    file = tmp_path_factory.mktemp("backends") / "weights.npz"
    np.savez(file, **weights)
    return file, expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_step_of_training_is_that_of_tensorflow(backend, on_tensorflow, environments, tmp_path):
    file, expected = on_tensorflow
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(tmp_path)}
    if backend == "torch":  # too large to be fetched for one test
        packages = PEERS / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        if not (PEERS / "stamp").exists() or not packages.exists():
            pytest.skip("torch is not here for this Python; tests/benchmarks/peers.sh makes an environment of it")
        environment["PYTHONPATH"] += f"{os.pathsep}{packages}"
    pinned = re.findall(r"^((?:keras|pydantic|numpy)==.*?) *\\?$", LOCK.read_text(), re.MULTILINE)
    python = environments.make(*pinned, *(["jax==0.10.2"] if backend == "jax" else []))
    command = [str(python), str(SCRIPT), str(file), str(tmp_path / "found.npz")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [backend]
    found = np.load(tmp_path / "found.npz")
    assert set(found) == expected.keys()
    assert sum("/gradient-" in key for key in expected) > 150
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
        assert key.endswith("after") or np.abs(value).max() > 0, key
