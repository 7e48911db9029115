"""Whether anything has changed since the last run: fingerprints of data, configuration and code.

Nothing heavy is imported here, so that a run with nothing to do ends in a moment. A file is read again only when its
size or its times differ from those noted with its hash.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from components.errors import ConfigError
from pipeline import spans
from pipeline.config import Config

_ROOT = Path(__file__).resolve().parent.parent
# Packages whose version decides what a run computes; the lock pins the rest along with them.
_CODE = (".py", ".txt")  # and what stands beside the code that it reads: rules of WordPiece, ops of the export
_PACKAGES = (
    "tfx",
    "tensorflow",
    "tensorflow-text",
    "keras",
    "apache-beam",
    "scikit-learn",
    "tensorflow-model-analysis",
)


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """sha256 by file, remembered in `cache` together with the file's size and times."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none yet, or damaged: it is made anew
            known = {}
        self._known: dict[str, list] = known if isinstance(known, dict) else {}
        self._changed = False

    def of(self, path: Path | str, status: os.stat_result | None = None) -> str:
        """The hash of `path`, read again only when the file has changed; `status` is that of the file, if known."""
        status = status or os.stat(path)
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(str(path))
        if known is None or known[0] != mark:
            try:
                known = self._known[str(path)] = [mark, file_hash(Path(path))]
            except PermissionError:
                raise ConfigError(f"{path}: cannot be read (permission denied); give this user the right to") from None
            self._changed = True
        return known[1]

    def save(self) -> None:
        """Keeps what was read, where the folder can be written."""
        if self._changed:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._cache.with_name(f"{self._cache.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._cache)


def input_files(config: Config) -> list[Path]:
    """Every file that a run may read: data of the window's spans, vocabulary, encoder, schema, serving logs."""
    found: set[Path] = {config.vocab_file, config.encoder_config_file}
    members = spans.spans_of_run(config.data, config.window)
    for number, (_, by_split) in spans.find_files(config.data).items():
        if number in members:
            found.update(path for paths in by_split.values() for path in paths)
    if config.validation.schema_file is not None:
        found.add(config.validation.schema_file)
    found.update(serving_logs(config))
    found.update(weight_files(config))
    return sorted(path for path in found if path.is_file())


def serving_logs(config: Config) -> list[Path]:
    """The files that `validation.serving_logs` names, by name; its folders may have wildcards, too."""
    return [Path(name) for name in sorted(glob.glob(config.validation.serving_logs or ""))]


def weight_files(config: Config) -> list[Path]:
    """The local files of `encoder.weights`; none for random weights and for a name on a hub, pinned by its revision."""
    if not config.encoder.weights:
        return []
    weights = Path(config.encoder.weights)
    if weights.is_dir():
        return sorted(path for path in weights.rglob("*") if path.is_file())
    # A TensorFlow 1 checkpoint is named by the common beginning of its files.
    return sorted(path for path in weights.parent.glob(f"{glob.escape(weights.name)}*") if path.is_file())


def code_fingerprint(*parts: str) -> str:
    """sha256 of the product's own code and of the versions of what it stands on.

    Args:
      *parts: folders or files, for example "components/transform"; none: all of it.
    """
    digest = hashlib.sha256()
    digest.update(repr(sys.version_info[:3]).encode())
    for package in _PACKAGES:
        try:
            digest.update(f"{package}=={metadata.version(package)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{package} is not installed\n".encode())
    for part in parts or ("pipeline", "components", "serving"):
        path = _ROOT / part
        for file in sorted(f for f in path.rglob("*") if f.suffix in _CODE) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(_ROOT)} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def code_revision() -> str:
    """The git commit of the checkout, with "+changes" where files differ from it; else the installed version."""
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == _ROOT:
            return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        pass  # no git, or not a checkout: the version says what was installed
    return f"biobert-cnn {metadata.version('biobert-cnn')}"


def _git(*arguments: str) -> str:
    # Where another user owns the checkout git would refuse; its code is what runs here anyway.
    command = ["git", "-c", f"safe.directory={_ROOT}", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10).stdout


def run_fingerprint(config: Config, hashes: FileHashes) -> str:
    """sha256 of all that decides a run's result: configuration, data and code."""
    digest = hashlib.sha256()
    digest.update(json.dumps(config.decisive(), sort_keys=True).encode())
    digest.update(code_fingerprint().encode())
    for file in input_files(config):
        digest.update(os.fsencode(f"{file} {hashes.of(file)}\n"))
    return digest.hexdigest()
