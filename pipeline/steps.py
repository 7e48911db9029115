"""The steps by name, for commands that speak of single ones; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from components.errors import ConfigError, PipelineError
from pipeline.config import Config

# Node ids of pipeline/graph.py, in order: what `run --from` and `--to` take; `steps_of` knows the optional one.
STEPS = (
    "examples", "statistics", "schema", "anomalies", "data_gate", "transform", "trainer", "evaluator",
    "serving_check", "push",
)  # fmt: skip


def steps_of(config: Config) -> tuple[str, ...]:
    """The steps of a configuration: `tuner` stands before `trainer` where there is a search."""
    if config.tuner is None:
        return STEPS
    place = STEPS.index("trainer")
    return (*STEPS[:place], "tuner", *STEPS[place:])


def check_steps(from_step: str | None, to_step: str | None, steps: tuple[str, ...] = STEPS) -> None:
    """Raises ConfigError where a step does not exist or the two are in the wrong order."""
    for flag, step in (("--from", from_step), ("--to", to_step)):
        if step is not None and step not in steps:
            raise ConfigError(f"{flag} {step}: there is no such step; the steps are {', '.join(steps)}")
    if from_step and to_step and steps.index(from_step) > steps.index(to_step):
        raise ConfigError(f"--from {from_step} --to {to_step}: {to_step} comes first")


def freeze_schema(config: Config, output: Path) -> None:
    """Writes the newest schema that the pipeline inferred to `output`.

    Raises:
      PipelineError: there is none yet, or the file exists already or cannot be written.
    """
    found = sorted(
        (config.root / "artifacts" / "schema" / "schema").glob("*/schema.pbtxt"), key=lambda path: int(path.parent.name)
    )
    if not found:
        raise PipelineError(f"no schema in {config.root} yet: call `biobert-cnn run CONFIG --to schema` first")
    if output.exists():
        raise PipelineError(f"{output} exists already; give another file with --output, or move it away")
    header = (
        "# Inferred from the data; review it. VALIDATION_DERIVED features are measures of the texts:\n"
        "# tighten their domains, add drift_comparator or skew_comparator, then name this file in\n"
        "# [validation] schema_file of the configuration.\n"
    )
    try:
        output.write_text(header + found[-1].read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise PipelineError(
            f"{output} cannot be written ({error.strerror}); give another file with --output"
        ) from error
