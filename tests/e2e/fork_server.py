"""A run's model server as a fork of a process that has imported TensorFlow, in place of `python -m serving.server`.

    python -SE fork_server.py NAME [FLAG …]

That is the program which the serving check starts: it has the fork write where it writes itself and ends with the
fork's status; when it is ended, so is the fork. The tests of the serving check, of containers and of the server have
real ones.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import threading

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve_by_forks() -> tuple[str, ...]:
    """The program, for `server_process.SERVER`; its forks are of a process that is made here and ends with this one."""
    name = f"servers-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")  # no file: unix(7)
    listener.listen()
    if os.fork() == 0:
        _fork_for_each(listener)
    listener.close()
    return sys.executable, "-SE", os.path.abspath(__file__), name


def _fork_for_each(listener: socket.socket) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for own in (0, 1):
        os.dup2(nothing, own)
    import serving.rpc
    import serving.service  # noqa: F401

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        flags, outputs, *_ = socket.recv_fds(client, 1 << 16, 2)
        if len(outputs) == 2 and os.fork() == 0:
            listener.close()
            _serve(client, json.loads(flags), outputs)
        for output in outputs:
            os.close(output)
        client.close()


def _serve(client: socket.socket, flags: list[str], outputs: list[int]) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for own, output in zip((1, 2), outputs, strict=True):
        os.dup2(output, own)
        os.close(output)

    def end_with_the_client() -> None:
        client.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_the_client, daemon=True).start()
    status = 70
    try:
        from serving.server import main

        status = main(flags)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            client.send(str(status).encode())
        finally:
            os._exit(status)


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{sys.argv[1]}")
        socket.send_fds(server, [json.dumps(sys.argv[2:]).encode()], [1, 2])
        ended = server.recv(16)
    if not ended:
        os.kill(os.getpid(), signal.SIGKILL)  # as the fork was
    sys.exit(int(ended))
