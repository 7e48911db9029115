"""For all tests: libraries are set as in a pipeline run, but that TensorFlow's C++ side tells its errors; weights drawn
for a test are the same in every run of it."""

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.environment import library_settings, spare_the_collector

ROOT = Path(__file__).parents[1]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.update(library_settings())
# What XLA compiles runs once or twice here, so that making it fast takes longer than it saves.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
spare_the_collector()

# What starts a model server, a Beam run or a whole training run is no unit test: `make check` leaves it out.
SERVERS = {"serve", "spawn"}
BEAM_RUNS = {"multiclass", "workshop", "sections", "transform"}
TRAINING_RUNS = {"make_fn_args", "staged", "averaged"}
LONG = [ROOT / "tests" / name for name in ("e2e", "serving")]


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (SERVERS | BEAM_RUNS | TRAINING_RUNS) & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    # Whole runs first and what waits next: at the end, short tests keep all workers busy to the last.
    items.sort(key=lambda item: [folder in item.path.parents for folder in LONG], reverse=True)


def _seed() -> None:
    if keras := sys.modules.get("keras"):  # a test that does not import it should not wait for it
        keras.utils.set_random_seed(0)


def _computes_by() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("TF_", "ONEDNN_", "XLA_"))}


@pytest.fixture(autouse=True)
def computes_as_before() -> Iterator[None]:
    """A test leaves what TensorFlow goes by as it was: processes of later tests would round otherwise than this one."""
    before = _computes_by()
    yield
    after = _computes_by()
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before


@pytest.fixture(autouse=True)
def beam_remembers() -> None:
    """As in a pipeline run, where Beam is imported."""
    if "apache_beam" in sys.modules:
        from components import beam_memo

        beam_memo.remember()


@pytest.fixture(scope="module", autouse=True)
def seeded_module() -> None:
    _seed()


@pytest.fixture(autouse=True)
def seeded(seeded_module: None) -> None:
    _seed()


def run_command(*command: str | Path, **options: object) -> str:
    """What the command prints; a failure shows the end of all that it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """`run_command`, for tests are no package."""
    return run_command


class Environments:
    """Environments beside the product's own, from the same index and cache as the set-up's (bootstrap.sh).

    Attributes:
      settings: what uv is called with.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        tools = ROOT / ".tools" / "venv" / "bin"
        own = tools / "uv"
        found = str(own) if own.exists() else shutil.which("uv")
        if found is None:
            pytest.skip("no uv: run deploy/bootstrap first")
        self._uv = found
        self.settings = os.environ | {
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_CONFIG": "1",
        }
        self.settings.setdefault("UV_HTTP_TIMEOUT", "180")
        self.settings.setdefault("UV_CACHE_DIR", str(ROOT / ".tools" / "cache"))
        # uv does not read pip's settings.
        ask = [tools / "python", "-m", "pip", "config", "get", "global.index-url"]
        said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() if own.exists() else ""
        named = any(os.environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"))
        if not named and (index := os.environ.get("PIP_INDEX_URL") or said):
            self.settings["UV_DEFAULT_INDEX"] = index
        if "PIP_CERT" in os.environ:
            self.settings.setdefault("SSL_CERT_FILE", os.environ["PIP_CERT"])

    def make(self, *arguments: str | Path, own_python: bool = False) -> Path:
        """The interpreter of an environment in which `uv pip install` put what the arguments say.

        Args:
          arguments: packages and flags.
          own_python: a copy of the product's interpreter, which may run on a private C library, not the system's.
        """
        python = self._folder / f"environment-{len(list(self._folder.iterdir()))}" / "bin" / "python"
        run_command(self._uv, "venv", "-q", "--python", sys._base_executable, python.parents[1], env=self.settings)
        if own_python:
            python.unlink()
            shutil.copy(sys.executable, python)
        self.install(python, *arguments)
        self._share_compiled(python)
        return python

    def install(self, python: Path, *arguments: str | Path) -> None:
        """Installs more into an environment."""
        pins = ROOT / "deploy" / "bootstrap" / "build.txt"
        command = [self._uv, "pip", "install", "-q", "--python", python, "--build-constraints", pins, *arguments]
        run_command(*command, env=self.settings)

    @staticmethod
    def _share_compiled(python: Path) -> None:
        """Gives an environment the bytecode of this one: of files that are links to the same, Python takes it."""
        own = Path(sysconfig.get_path("purelib"))
        site = python.parents[1] / own.relative_to(sys.prefix)
        for folder, _, files in os.walk(own):
            target = site / Path(folder).relative_to(own)
            if target.name == "__pycache__" and target.parent.is_dir() and not target.exists():
                target.mkdir()
                with contextlib.suppress(OSError):  # another file system: then uv's files are copies, too
                    for file in files:
                        os.link(os.path.join(folder, file), target / file)


@pytest.fixture
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    """Makes environments; they take up gigabytes and go with the test."""
    folder = tmp_path_factory.mktemp("environments")
    yield Environments(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pipeline", "components", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run_command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def pytest_unconfigure() -> None:
    gc.freeze()  # Beam and TensorFlow in one process: the interpreter's last collection ends in a segmentation fault
