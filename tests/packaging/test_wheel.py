"""The wheel holds everything that the product needs, and nothing that it does not."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
IMPORT_ALL = """
import importlib, pkgutil, sys
import components, pipeline, serving
names = []
for package in (components, pipeline, serving):
    assert "site-packages" in package.__file__, package.__file__
    names += [name for _, name, _ in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_wheel_holds_code_configurations_and_shipped_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "pipeline/configs/default.toml", "pipeline/data/biobert/vocab.txt", "pipeline/data/biobert/config.json",
        "pipeline/data/pmc_rct_sections/train.csv", "pipeline/data/pmc_rct_sections/attribution.csv",
        "components/transform/unicode_rules.txt",
    } <= names  # fmt: skip
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pipeline", "components", "serving", "biobert_cnn-0.1.0.dist-info"}
    sources = {
        str(path.relative_to(ROOT))
        for top in ("pipeline", "components", "serving")
        for path in (ROOT / top).rglob("*.py")
    }
    assert sources <= names


def test_wheel_installs_in_an_empty_environment_and_every_module_imports_from_an_empty_folder(
    wheel: Path, environments, run, tmp_path: Path
) -> None:
    lock = ROOT / "deploy" / "bootstrap" / "requirements.txt"
    python = environments.make("--require-hashes", "-r", lock, own_python=True)
    environments.install(python, "--no-deps", wheel)
    environment, empty = python.parents[1], tmp_path / "empty"
    empty.mkdir()
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    printed = run(python, "-P", "-c", IMPORT_ALL, cwd=empty, env=plain)
    assert int(printed.splitlines()[-1]) > 40
    checked = run(environment / "bin" / "biobert-cnn", "config", "check",
                  environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "pipeline" / "configs"
                  / "default.toml", cwd=empty, env=plain)  # fmt: skip
    assert "valid; task multiclass, 5 labels" in checked
