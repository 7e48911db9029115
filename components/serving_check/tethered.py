"""`python -m components.serving_check.tethered PARENT PROGRAM [ARGUMENT …]`: runs PROGRAM for as long as PARENT lives.

A run that is killed with SIGKILL cannot stop what it started. Linux can: with PR_SET_PDEATHSIG the kernel kills this
process when the thread that started it ends, and the request outlasts execv (prctl(2)). It is made here, after the
fork, and not in a `preexec_fn`, which is not safe in a process with as many threads as TensorFlow has.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> NoReturn:
    """Becomes PROGRAM; exit status 1 if the parent is gone already."""
    parent, program = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request was made
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
