"""Runs command lines in forks of one process that has imported TFX already, for TFX takes long to import.

Reads one JSON request a line, `{"argv": […], "cwd": …, "stdout": path, "stderr": path}`; answers `pid N` when the
child runs and `exit N STATUS` when it has ended (STATUS is negative for a signal, as in subprocess). With "module" in
it the command is `python -m module argv…` instead of `biobert-cnn argv…`; "environment" is added to the child's. What a
schedule starts as processes of their own (`launch.run_json`) are forks, too; `Project.process` has real ones.

A run's model server is a fork, too (fork_server.py), but for "module" commands, which are what containers run.

With `--libraries` it has imported TFX alone and nothing of this project: what a module leaves out shows in the fork.
"""

import gc
import json
import os
import runpy
import sys
import tempfile

from fork_server import serve_by_forks

from pipeline.environment import library_settings, spare_the_collector


def run_child(request: dict, server: tuple[str, ...] = ()) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    for target, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, target)
    status = 70
    os.environ.update(request.get("environment", {}))
    try:
        if "module" in request:
            sys.argv = [request["module"], *request["argv"]]
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            if server:
                from components.serving_check import server_process

                server_process.SERVER = server
            from pipeline.cli import app

            app(request["argv"], standalone_mode=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_json(command, log, stop, timeout_s=None, lock=None) -> dict:
    """As `launch.run_json`, of `python -m module argv…`."""
    assert command[:2] == [sys.executable, "-m"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("r") as output:
        pid = os.fork()
        if pid == 0:
            run_child({"module": command[2], "argv": command[3:], "cwd": os.getcwd(), "stdout": output.name,
                       "stderr": str(log)})  # fmt: skip
        os.waitpid(pid, 0)
        return json.loads(output.readlines()[-1])


def main() -> None:
    os.environ.update(library_settings())
    spare_the_collector()
    server: tuple[str, ...] = ()
    if "--libraries" in sys.argv:
        import tfx.components  # noqa: F401

        assert not [name for name in sys.modules if name.startswith("components.")]
    else:
        import pipeline.graph
        import pipeline.kubeflow.step
        import pipeline.local  # noqa: F401
        from pipeline.retraining import launch, measure_process

        launch.run_json = measure_process.run_json = run_json
        server = serve_by_forks()
    gc.freeze()  # what is shared with the forks stays shared
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run_child(request, server)
        print(f"pid {pid}", file=answers)
        _, status = os.waitpid(pid, 0)
        print(f"exit {pid} {os.waitstatus_to_exitcode(status)}", file=answers)


if __name__ == "__main__":
    main()
