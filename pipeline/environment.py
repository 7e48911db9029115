"""What is settled before a command starts: what libraries read from the environment, and how its output is written."""

from __future__ import annotations

import atexit
import gc
import io
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def library_settings() -> dict[str, str]:
    """Variables to set before TensorFlow, which brings Keras, is imported; what the caller's environment says holds."""
    settings = {
        # TensorFlow's C++ side writes what no user can act on, such as that there is no GPU, and may quote data.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Keras would read ~/.keras/keras.json, and write it where there is none: a run depends on its configuration.
        "KERAS_HOME": os.devnull,
        # Of itself TensorFlow has oneDNN only on CPUs with AVX-512: as the server, with the same kernels on every CPU.
        "TF_ENABLE_ONEDNN_OPTS": "1",
    }
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without an entry in passwd: TFX's import asks for the folder
        settings["HOME"] = _own_folder()
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def _own_folder() -> str:
    """A folder for temporary files that nobody else can write to."""
    folder = Path(tempfile.gettempdir()) / f"biobert-cnn-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return str(folder)
    return tempfile.mkdtemp(prefix="biobert-cnn-")  # somebody else made it first


def spare_the_collector() -> None:
    """For a process of its own, before TensorFlow, TFX and Beam are imported.

    They make some million objects that live as long as the process. To go over them while they are imported, and once
    more when the interpreter ends, takes a quarter of a short command's time (10.0 s against 7.6 s for the graph).
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def write_any_character() -> None:
    """What standard output and error have no room for, such as an arrow in Latin-1, is written as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
