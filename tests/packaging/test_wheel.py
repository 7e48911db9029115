"""The wheel holds everything that the product needs, and nothing that it does not."""

import os
import shutil
import subprocess
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


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pipeline", "components", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


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
    wheel: Path, tmp_path: Path
) -> None:
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run(sys._base_executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    # Where the checkout's interpreter runs on a private C library, so must this one.
    python.unlink()
    shutil.copy(Path(sys.executable), python)
    uv = ROOT / ".tools" / "venv" / "bin" / "uv"
    settings = {
        **os.environ,
        "UV_CACHE_DIR": str(ROOT / ".tools" / "cache"),
        "UV_BUILD_CONSTRAINT": str(ROOT / "deploy" / "bootstrap" / "build.txt"),
        "UV_NO_CONFIG": "1",
    }
    install = [uv, "pip", "install", "--quiet", "--python", python]
    run(*install, "--require-hashes", "-r", ROOT / "deploy" / "bootstrap" / "requirements.txt", env=settings)
    run(*install, "--no-deps", wheel, env=settings)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    printed = run(python, "-P", "-c", IMPORT_ALL, cwd=empty, env=plain)
    assert int(printed.splitlines()[-1]) > 40
    checked = run(environment / "bin" / "biobert-cnn", "config", "check",
                  environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "pipeline" / "configs"
                  / "default.toml", cwd=empty, env=plain)  # fmt: skip
    assert "valid; task multiclass, 5 labels" in checked
    shutil.rmtree(environment)
