"""Run by tests: kills a child (SIGKILL) at its 1st, 2nd, 3rd … file operation, until one lives to the end.

`python killed.py OPERATION SOURCE SERVING` prints one JSON line a child: what a model server sees after the kill, and
after the same operation was called again undisturbed. OPERATION is `push` (a second version beside a first) or
`rollback` (three versions, back to the first).
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from components.push import base_path
from components.push.publish import publish
from pipeline import versions

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def push(source: Path, serving: Path, content: str) -> None:
    (source / "variables" / "data").write_text(content)
    publish(source, serving, 2, lambda number: {"blessed": True}, clock=lambda: 1000.0)


def visible(serving: Path) -> dict[str, dict[str, int]]:
    """Files and their sizes by version, without looking at what the code under test says of them."""
    return {
        name: {
            path.relative_to(serving / name).as_posix(): path.stat().st_size
            for path in (serving / name).rglob("*")
            if path.is_file()
        }
        for name in sorted(os.listdir(serving))
        if name.isdigit()
    }


def prepare(operation: str, source: Path, serving: Path) -> None:
    shutil.rmtree(serving, ignore_errors=True)
    push(source, serving, "first")
    if operation == "rollback":
        for content in ("second", "third"):
            (source / "variables" / "data").write_text(content)
            publish(source, serving, 3, lambda number: {"blessed": True}, clock=lambda: 1000.0)


def act(operation: str, source: Path, serving: Path) -> None:
    if operation == "push":
        push(source, serving, "second")
    elif max(base_path.published(serving)) != 1000:  # called again after a kill, it may be done already
        versions.rollback(serving, 1000)


def kill_at(number: int) -> None:
    """SIGKILL to this process at its file operation of that number."""
    left = itertools.count(number - 1, -1)

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(operation: str, source: Path, serving: Path) -> None:
    for number in itertools.count(1):
        prepare(operation, source, serving)
        child = os.fork()
        if child == 0:
            kill_at(number)
            act(operation, source, serving)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        after_kill = visible(serving)
        act(operation, source, serving)
        names = sorted(path.name for path in (serving / ".staging").iterdir())
        print(json.dumps({"status": status, "killed": after_kill, "again": visible(serving), "staging": names}))
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
