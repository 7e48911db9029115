"""`compile`, the pipeline for another orchestrator, and `step`, what Airflow's tasks run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from components.errors import ConfigError, PipelineError

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, e.g. pipeline/configs/default.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value, e.g. training.epochs=3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer, errors_in_words: Callable[..., Any]) -> None:
    """Adds the commands to the command line."""
    app.command("compile")(errors_in_words(compile_command))
    app.command("step")(errors_in_words(step_command))


def compile_command(
    config: ConfigPath,
    target: Annotated[str, typer.Option(help="kubeflow, vertex or airflow.")],
    output: Annotated[
        Path, typer.Option(help="The file to write: .yaml (kubeflow), .json (airflow), either (vertex).")
    ],
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the pipeline for another orchestrator, by section `kubeflow` or `airflow` of the configuration."""
    from pipeline.config import load_config

    if target not in ("kubeflow", "vertex", "airflow"):
        raise ConfigError(f"--target {target}: is not known; give kubeflow, vertex or airflow")
    loaded = load_config(config, set_ or [])
    hint = ""
    if target == "airflow":
        from pipeline.airflow.target import compile_to as compile_airflow

        tasks, pool = compile_airflow(loaded, config, set_ or [], output)
        hint = f"\nonce: airflow pools set {pool} 1 'one step at a time on {loaded.root}'"
    else:
        from pipeline.kubeflow.target import compile_to

        tasks = compile_to(loaded, target, output)  # type: ignore[arg-type]  # one of the two
    found = {"output": str(output), "tasks": tasks}
    print(json.dumps(found) if as_json else f"{output}: {len(tasks)} tasks for {target}{hint}")


def step_command(
    config: ConfigPath,
    step: Annotated[str, typer.Argument(help="As `compile --target airflow` names it.")],
    run: Annotated[str, typer.Option(help="YYYYMMDDTHHMMSS or YYYYMMDDTHHMMSS-NNNN, the same for all steps of a run.")],
    span: Annotated[str, typer.Option(help="The window of spans ends with this one.")] = "",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run one step of a run that an orchestrator leads; the steps before it must have run."""
    from pipeline.config import load_config
    from pipeline.one_step import run_step

    try:
        record = run_step(lambda more: load_config(config, [*(set_ or []), *more]), step, run, span)
    except PipelineError as error:
        error.answer = {"step": step, "status": "failed", "error": str(error), "error_kind": error.kind}
        raise
    except Exception as error:
        # A traceback may quote rows of data: it stays out of the terminal, and the step's log holds it.
        kind = type(error).__name__
        if as_json:
            print(json.dumps({"step": step, "status": "failed", "error": f"unexpected {kind}", "error_kind": kind}))
        print(f"error: step {step}: unexpected {kind}; see the step's log", file=sys.stderr)
        raise typer.Exit(1) from None
    status, reason = record["last_step"], record["error"]
    found = {"step": step, "status": status, "error": reason, "error_kind": record["error_kind"]}
    found.update({"run_status": record["status"], "version": record["version"], "log": record["log"]})
    print(json.dumps(found) if as_json else f"{step}: {status}")
    if reason:
        print(f"error: step {step}: {reason}", file=sys.stderr)
        raise typer.Exit(3)
