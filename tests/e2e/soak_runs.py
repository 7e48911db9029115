"""Forks of a process that has imported TFX: one a run, for as many as are asked for.

    python soak_runs.py SOCKET LOG

A client sends the command line as JSON, with two descriptors: standard output, and the lock of scheduled runs, which
the fork holds as long as it lives.
"""

import contextlib
import json
import os
import socket
import sys

from fork_server import serve_by_forks

import pipeline.graph
import pipeline.local  # noqa: F401
from components.serving_check import server_process
from pipeline.cli import app
from pipeline.environment import spare_the_collector


def run_child(argv: list[str], output: int, lock: int, log: str) -> None:
    os.setsid()
    os.dup2(output, 1)
    os.close(output)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(errors, 2)
    os.set_inheritable(lock, False)
    status = 70
    try:
        app(argv, standalone_mode=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        with contextlib.suppress(OSError):  # nobody reads any more: the schedule was killed
            sys.stdout.flush()
        os._exit(status)


def main() -> None:
    address, log = sys.argv[1:]
    spare_the_collector()
    server_process.SERVER = serve_by_forks()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            message, descriptors, *_ = socket.recv_fds(connection, 1 << 16, 2)
            if len(descriptors) == 2:
                output, lock = descriptors
                pid = os.fork()
                if pid == 0:
                    server.close()
                    connection.close()
                    run_child(json.loads(message), output, lock, log)
                os.close(output)
                os.close(lock)
                with contextlib.suppress(OSError):
                    connection.send(b".")
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    main()
