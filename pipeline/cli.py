"""`biobert-cnn`: the command line. Heavy packages are imported only by the commands that need them.

Exit status: 0 pushed or nothing to do, 1 failed, 2 bad usage, 3 not blessed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from components.errors import ConfigError, PipelineError, explain_unexpected
from pipeline import orchestrators
from pipeline.environment import library_settings, spare_the_collector, write_any_character
from pipeline.retraining import commands

UsageError: Any = typer.BadParameter.__base__  # typer does not export it


class UsageInJson(TyperGroup):
    """With `--json` a usage error, too, is one object on standard output, beside its words on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["as_json"] = "--json" in args
        with _told_in_json(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _told_in_json(ctx):
            return super().invoke(ctx)


@contextmanager
def _told_in_json(ctx: Any) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if ctx.meta["as_json"]:
            print(json.dumps({"error": error.format_message(), "error_kind": "UsageError"}, sort_keys=True))
        raise


app = typer.Typer(
    name="biobert-cnn",
    cls=UsageInJson,
    help="From labelled biomedical text to a validated, gated, versioned BioBERT-CNN classifier that serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at a configuration.", no_args_is_help=True)
schema_app = typer.Typer(help="Look after the data's schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(schema_app, name="schema")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, e.g. pipeline/configs/default.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value, e.g. training.epochs=3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def errors_in_words(command: Callable[..., Any]) -> Callable[..., Any]:
    """Ends a command that raises a PipelineError with its message, notes included, on standard error and its status;
    with `--json` also with one object on standard output."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except PipelineError as error:
            if kwargs.get("as_json"):
                print(json.dumps(error.answer or {"error": str(error), "error_kind": error.kind}, sort_keys=True))
            print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            raise typer.Exit(error.exit_status) from None
        except (typer.Exit, BrokenPipeError):  # the latter: who reads the output has seen enough
            raise
        except Exception as error:
            # A traceback may quote rows of data: it stays out of the terminal.
            if isinstance(error, OSError) and error.errno is not None:
                said = f"{error.filename or 'a file'}: cannot be read or written ({error.strerror})"
            else:
                said = explain_unexpected(error)
            if kwargs.get("as_json"):
                print(json.dumps({"error": said, "error_kind": type(error).__name__}, sort_keys=True))
            print(f"error: {said}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("stopped; call again to go on with what is done", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


def _load(path: Path, overrides: list[str] | None) -> Any:
    from pipeline.config import load_config

    return load_config(path, overrides or [])


@app.command("run")
@errors_in_words
def run_command(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: AsJson = False,
    from_step: Annotated[str | None, typer.Option("--from", help="First step to run.")] = None,
    to_step: Annotated[str | None, typer.Option("--to", help="Last step to run.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for another run on the same root.")] = False,
    force: Annotated[bool, typer.Option(help="Run even when nothing has changed.")] = False,
    trigger: Annotated[str | None, typer.Option(hidden=True, help="What a schedule runs it for.")] = None,
) -> None:
    """Run the pipeline: data → validated, gated, served model version."""
    from pipeline import run as runs
    from pipeline.columns import check_columns
    from pipeline.spans import has_spans
    from pipeline.steps import check_steps, steps_of

    loaded = None
    try:
        loaded = _load(config, set_)
        check_steps(from_step, to_step, steps_of(loaded))
        if trigger is None and not has_spans(loaded.data):  # else the ingest refuses the data, on record, a span alone
            check_columns(config, loaded)
        record = runs.run(loaded, from_step, to_step, wait, force, trigger)
    except PipelineError as error:
        error.answer = {**runs.blank_record(), **(error.record or {}), **runs.failure(error)}
        raise
    except Exception as error:
        # A traceback may quote rows of data: it stays out of the terminal.
        found = {**runs.blank_record(), **(getattr(error, "record", None) or {}), **runs.failure(error)}
        if as_json:
            print(runs.to_json(found))
        log = found["log"] or (f"the newest log in {loaded.root}/logs" if loaded else None)
        where = f"; for what came before it see {log}" if log else ""
        print(f"error: {explain_unexpected(error)}{where}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(runs.to_json(record))
    else:
        from pipeline.console import report_console
        from pipeline.summary import print_summary

        print_summary(report_console(), record, str(loaded.root))
    raise typer.Exit(runs.EXIT_STATUS[record["status"]])


@config_app.command("check")
@errors_in_words
def config_check(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a configuration whole, without running anything."""
    from pipeline.columns import check_columns

    loaded = _load(config, set_)
    check_columns(config, loaded)
    if as_json:
        print(json.dumps(loaded.model_dump(mode="json")))
    else:
        print(f"{config}: valid; task {loaded.task}, {len(loaded.labels)} labels, root {loaded.root}")


@schema_app.command("freeze")
@errors_in_words
def schema_freeze(
    config: ConfigPath,
    output: Annotated[Path | None, typer.Option(help="Default: <configuration>.schema.pbtxt beside it.")] = None,
    set_: Overrides = None,
) -> None:
    """Write the schema of the last run for review; name it in validation.schema_file from then on."""
    from pipeline.steps import freeze_schema

    target = output or config.with_suffix(".schema.pbtxt")
    freeze_schema(_load(config, set_), target)
    named = os.path.relpath(target, config.parent)  # as the configuration must name it
    print(f'{target}: review it, then set  [validation] schema_file = "{named}"')


@app.command("weights")
@errors_in_words
def weights_command(
    config: ConfigPath,
    output: Annotated[
        Path | None, typer.Option(help="Also write them to this folder, converted: safetensors, config, vocabulary.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Look at the encoder's pretrained weights, every tensor accounted for; a run does the same as its first step."""
    from pipeline.weights import print_weights

    print_weights(_load(config, set_), output, as_json)


@app.command()
@errors_in_words
def history(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """List the runs of a configuration: metrics, blessed or not, version pushed, what each step came to."""
    from pipeline.history import print_history

    print_history(_load(config, set_), as_json)


@app.command()
@errors_in_words
def rollback(
    config: ConfigPath,
    to_version: Annotated[int | None, typer.Option("--to", help="Default: the version before the live one.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the journal of versions.")] = "",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier blessed version the live one."""
    from pipeline import versions

    loaded = _load(config, set_)
    version = versions.rollback(loaded.serving_dir, to_version, reason=reason)
    print(json.dumps({"version": version}) if as_json else f"version {version} is live in {loaded.serving_dir}")


@app.command()
@errors_in_words
def restore(
    config: ConfigPath,
    version: Annotated[int | None, typer.Option("--version", help="Default: the newest that was rolled back.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the journal of versions.")] = "",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Bring back a version that was rolled back."""
    from pipeline import versions

    loaded = _load(config, set_)
    number = versions.restore(loaded.serving_dir, version, reason=reason)
    print(json.dumps({"version": number}) if as_json else f"version {number} is back in {loaded.serving_dir}")


@app.command("versions")
@errors_in_words
def list_versions(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """List the versions in the model server's base path, those that were rolled back included."""
    from pipeline.history import print_versions

    print_versions(_load(config, set_), as_json)


@app.command()
@errors_in_words
def predict(
    config: ConfigPath,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; for pairs, text and second segment in turn.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file of texts instead: CSV, TSV, JSONL, Parquet or lines.")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Default: the live version.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also the n-grams that give most to a label.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Classify texts, or the rows of a file, with the pushed model."""
    from pipeline.predictions import print_file, print_texts

    loaded = _load(config, set_)
    if (file is None) == (not texts):
        raise ConfigError("give texts, or --file FILE, and not both")
    if file is not None and explain:
        raise ConfigError("--explain: is for texts on the command line, not for a file")
    if file is not None:
        print_file(loaded, file, version, as_json)
    else:
        print_texts(loaded, list(texts or []), version, as_json, explain)


@app.command()
@errors_in_words
def score(
    config: ConfigPath,
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file or a folder, of any size.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder; called again, goes on with what is missing.")
    ],
    version: Annotated[int | None, typer.Option(help="Default: the live version.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet instead of JSON lines.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Classify a file or a folder of any size with the pushed model, by Beam; resumable."""
    from pipeline.predictions import score_files

    score_files(_load(config, set_), source, output, version, "parquet" if parquet else "jsonl", as_json)


PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_THROUGH)
def serve(context: typer.Context) -> None:
    """Serve models: takes tensorflow_model_server's flags (`serve --help` lists them)."""
    from serving.server import main as server

    raise typer.Exit(server(context.args))


@app.command("bench-serve", context_settings=PASS_THROUGH)
def bench_serve(context: typer.Context) -> None:
    """Load a model server with requests at a given rate; latencies and errors (`bench-serve --help`)."""
    from serving.bench import main as bench

    raise typer.Exit(bench(context.args))


commands.register(app, errors_in_words)
orchestrators.register(app, errors_in_words)


def main() -> None:
    """The console script."""
    os.environ.update(library_settings())
    spare_the_collector()
    write_any_character()
    app()


if __name__ == "__main__":
    main()
