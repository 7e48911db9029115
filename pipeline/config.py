"""One configuration: TOML → pydantic, validated whole before anything runs.

    config = load_config("pipeline/configs/default.toml", ["training.epochs=1"])

Relative input paths start from the configuration file, output paths from the working directory.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from components import config as sections
from components.config import HUB_NAME
from components.errors import ConfigError, PipelineError
from components.examples.spans import matching_names
from components.transform.vocab_file import check_tokens, read_tokens
from pipeline.airflow.config import AirflowConfig
from pipeline.kubeflow.config import KubeflowConfig
from pipeline.retraining import config as retraining

SHIPPED = Path(__file__).parent / "data"


class Config(sections.Section):
    """The whole configuration; every section but `labels`, `task` and `data` has defaults."""

    name: sections.FileName
    task: sections.Task
    labels: Annotated[tuple[sections.Name, ...], Field(min_length=1)]  # in the order of the probabilities
    data: sections.DataConfig
    tokenizer: sections.TokenizerConfig = sections.TokenizerConfig()
    encoder: sections.EncoderConfig = sections.EncoderConfig()
    head: sections.HeadConfig = sections.HeadConfig()
    training: sections.TrainingConfig = sections.TrainingConfig()
    tuner: sections.TunerConfig | None = None  # None: no search
    validation: sections.ValidationConfig = sections.ValidationConfig()
    evaluation: sections.EvaluationConfig = sections.EvaluationConfig()
    export: sections.ExportConfig = sections.ExportConfig()
    serving: sections.ServingConfig = sections.ServingConfig()
    beam: sections.BeamConfig = sections.BeamConfig()
    local: sections.LocalConfig = sections.LocalConfig()
    paths: sections.PathsConfig = sections.PathsConfig()
    window: retraining.WindowConfig = retraining.WindowConfig()
    schedule: retraining.ScheduleConfig = retraining.ScheduleConfig()
    retention: retraining.RetentionConfig = retraining.RetentionConfig()
    notify: retraining.NotifyConfig = retraining.NotifyConfig()
    watch: retraining.WatchConfig = retraining.WatchConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()
    airflow: AirflowConfig = AirflowConfig()

    @model_validator(mode="before")
    @classmethod
    def _training_goes_by_the_gates(cls, values: Any) -> Any:
        """The metric of early stopping, where it is not named: that of the first gate over all labels that is one."""
        if not isinstance(values, dict):
            return values
        training, evaluation = values.get("training", {}), values.get("evaluation")
        gates = evaluation.get("gates") if isinstance(evaluation, dict) else None
        if not isinstance(training, dict) or "metric" in training or not isinstance(gates, list):
            return values
        whole = [gate for gate in gates if isinstance(gate, dict) and "label" not in gate]
        metrics = [gate.get("metric", "macro_f1") for gate in whole]
        first = next((metric for metric in metrics if metric in sections.METRICS), None)
        return values if first is None else {**values, "training": {**training, "metric": first}}

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        bad = [label for label in self.labels if label != label.strip() or not label.isprintable()]
        if bad:
            raise ValueError(f"labels: {bad[0]!r} begins or ends in white space, or holds what cannot be printed")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label stands there twice")
        if self.task == "binary" and len(self.labels) != 2:
            raise ValueError(f"labels: a binary task has two, the positive one last; {len(self.labels)} given")
        if self.task == "multiclass" and len(self.labels) < 2:
            raise ValueError("labels: a multiclass task has at least two")
        columns = self.data.columns
        if self.label_column in (columns.text, columns.text_pair, columns.id, *columns.slices):
            raise ValueError(
                f"data.columns: {self.label_column!r} is the column of the label; it cannot be another's too"
            )
        if self.task == "multilabel" and columns.label:
            raise ValueError("data.columns.label: a multilabel task reads data.columns.labels")
        if self.task != "multilabel" and columns.labels:
            raise ValueError(f"data.columns.labels: a {self.task} task reads data.columns.label")
        if self.task == "multilabel" and self.data.format == "pubmed_rct":
            raise ValueError("data.format: pubmed_rct has one label a sentence; the task is multilabel")
        bad = [s for s in self.labels if self.task == "multilabel" and self.data.label_separator in s]
        if bad:
            raise ValueError(f"data.label_separator: {self.data.label_separator!r} stands inside the label {bad[0]!r}")
        if self.evaluation.split not in self.data.split_names:
            raise ValueError(
                f"evaluation.split: there is no split {self.evaluation.split!r}; data.splits gives "
                f"{', '.join(self.data.split_names)}"
            )
        for gate in self.evaluation.gates:
            if gate.label is not None and gate.label not in self.labels:
                raise ValueError(f"evaluation.gates: {gate.label!r} is not one of the labels")
            if gate.min_gain_over_baseline is not None and not self.evaluation.baseline:
                raise ValueError("evaluation.gates: min_gain_over_baseline needs evaluation.baseline = true")
        weights = self.training.class_weights
        if isinstance(weights, dict) and set(weights) != set(self.labels):
            raise ValueError("training.class_weights: give a weight for every label, or 'balanced', or 'none'")
        if self.tuner is not None:
            self._check_search(self.tuner)
        if self.tokenizer.max_length < 5 and self.data.has_pairs:
            raise ValueError("tokenizer.max_length: a pair needs at least 5 tokens")
        if self.tokenizer.long_text == "windows" and self.data.has_pairs:
            raise ValueError("tokenizer.long_text: windows are cut from single texts; a pair is truncated")
        if self.schedule.serving_drift is not None and self.validation.serving_logs is None:
            raise ValueError("schedule.serving_drift: name the server's request log in validation.serving_logs")
        if self.validation.length_skew is not None and self.validation.serving_logs is None:
            raise ValueError("validation.length_skew: name the server's request log in validation.serving_logs")
        if "{SPAN}" not in next(iter(self.data.splits.values())):
            if self.window != retraining.WindowConfig():
                raise ValueError("window: the data has no spans; write {SPAN} in every glob of data.splits")
            for name in ("label_drift", "length_drift"):
                if getattr(self.validation, name) is not None:
                    raise ValueError(
                        f"validation.{name}: it is against the span before, and the data has no spans; write {{SPAN}} "
                        "in every glob of data.splits"
                    )
        return self

    def _check_search(self, tuner: sections.TunerConfig) -> None:
        if self.window.warm_start:
            raise ValueError("tuner: trials do not start from the live model; set window.warm_start = false")
        for name, values in tuner.space.by_name().items():
            section, _, key = name.partition(".")
            own = getattr(self, section)
            for value in values if isinstance(values, tuple) else (values.min, values.max):
                try:
                    type(own).model_validate({**own.model_dump(), key: value})
                except ValidationError as error:
                    message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"tuner.space.{name}: {json.dumps(value)}: {message}") from None

    def decisive(self) -> dict[str, Any]:
        """As JSON values, without the sections that decide nothing of the result: when, where and for whom to run."""
        aside = {"paths", "local", "schedule", "retention", "notify", "watch", "kubeflow", "airflow"}
        return self.model_dump(mode="json", exclude=aside)

    @property
    def label_column(self) -> str:
        """The column of the label, or of the labels when the task is multilabel."""
        columns = self.data.columns
        if self.task == "multilabel":
            return columns.labels or "labels"
        return columns.label or "label"

    @property
    def label_feature(self) -> str:
        """The feature of an example that holds its label or labels."""
        return "labels" if self.task == "multilabel" else "label"

    @property
    def vocab_file(self) -> Path:
        """The WordPiece vocabulary, one token a line."""
        return self.tokenizer.vocab or SHIPPED / "biobert" / "vocab.txt"

    @property
    def encoder_config_file(self) -> Path:
        """The BERT config.json that `encoder`'s own values override."""
        return self.encoder.config or SHIPPED / "biobert" / "config.json"

    @property
    def root(self) -> Path:
        """The pipeline root: artifacts, metadata, logs."""
        return _absolute(self.paths.root or Path("runs") / self.name)

    @property
    def serving_dir(self) -> Path:
        """The base path of the model server: one folder a version."""
        return _absolute(self.paths.serving or self.root / "serving" / self.serving.model_name)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and validates a configuration, paths made absolute.

    Args:
      path: a TOML file.
      overrides: `key.subkey=value` each; the value is TOML, or a plain string where it is not.

    Raises:
      ConfigError: naming the key, the value and what would be right.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    if "name" not in raw and not any(override.partition("=")[0].strip() == "name" for override in overrides):
        raw["name"] = _name_of(path)
    # Where a relative path starts is settled before an override may replace it.
    _rebase(raw, path.absolute().parent)
    return read_values(path, raw, overrides)


def _name_of(path: Path) -> str:
    """The name of a configuration that gives none: that of its file."""
    try:
        return TypeAdapter(sections.FileName).validate_python(path.stem)
    except ValidationError:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-._") or "mine"
        raise ConfigError(
            f"{path}: name: none is given, and the file's own, {path.stem!r}, is none for a folder: letters, digits, "
            f'"_", "." and "-" alone; write  name = "{plain}"  at the top of the file, or rename it'
        ) from None


def read_values(source: str | Path, values: dict[str, Any], overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Validates a configuration that is values already; relative paths start from the working directory.

    Args:
      source: what messages name as the place of a mistake.
      values: by section; overrides are written into it.
      overrides: as in `load_config`.

    Raises:
      ConfigError: as `load_config`.
    """
    override_values(values, overrides)
    _rebase(values, Path.cwd())
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(Path(source), values, error)) from None
    _check_files(Path(source), config)
    return config


def override_values(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> None:
    """Writes `key.subkey=value` each into a configuration's values.

    Raises:
      ConfigError: one of them is no override.
    """
    for override in overrides:
        _override(values, override)


_INPUT_PATHS = (
    ("data", "input"), ("tokenizer", "vocab"), ("encoder", "config"), ("validation", "schema_file"),
    ("validation", "serving_logs"), ("notify", "secret_file"),
)  # fmt: skip


def _rebase(raw: dict[str, Any], base: Path) -> None:
    for section, key in _INPUT_PATHS:
        value = raw.get(section, {}).get(key) if isinstance(raw.get(section), dict) else None
        if isinstance(value, str) and "://" not in value:
            raw[section][key] = str(_absolute(base / value))
    encoder = raw.get("encoder")
    weights = encoder.get("weights") if isinstance(encoder, dict) else None
    if isinstance(encoder, dict) and isinstance(weights, str) and not HUB_NAME.match(weights):
        encoder["weights"] = str(_absolute(base / weights))


def _absolute(path: Path) -> Path:
    """One spelling of a path, whichever folder a command is called from: the steps' cache and a run's fingerprint go by
    it. Links stay, and so does a `..` that leads out of one."""
    plain = os.path.normpath(path.absolute())
    return Path(plain) if os.path.realpath(plain) == os.path.realpath(path) else path.absolute()


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write section.key=value, for example --set training.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: {part!r} is a value, not a section")
    target[parts[-1]] = value


def _explain(path: Path, values: dict[str, Any], error: ValidationError) -> str:
    """Each mistake once: of a value that may be of several kinds, pydantic reports what each of them wants."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_place(item, values), []).append(item)
    # Where one kind's complaint is about a part of the value, the value itself is of the right kind.
    places = [p for p in found if not any(len(q) > len(p) and q[: len(p)] == p for q in found)]
    lines = [f"{path}: {len(places)} mistake{'s' if len(places) > 1 else ''}"]
    for place in places:
        item = found[place][0]
        message, *rest = (one["msg"].removeprefix("Value error, ") for one in found[place])
        message = ", or ".join([message, *(other.removeprefix("Input should be ") for other in rest)])
        if item["type"] == "extra_forbidden":
            message = f"is not a known key; {_neighbours(place)}"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] != "value_error" or not isinstance(item["input"], dict):
            message = f"{message}; {json.dumps(item['input'], default=str)} given"
        lines.append(f"  {'.'.join(map(str, place)) or '(whole file)'}: {message}")
    return "\n".join(lines)


def _place(item: Any, values: Any) -> tuple[Any, ...]:
    """Where in `values` an error is: its location without pydantic's names for the kinds that a value may be of."""
    place = []
    for part in item["loc"]:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
            place.append(part)
    return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)


def _neighbours(location: tuple[Any, ...]) -> str:
    """Names the keys that stand where the unknown one was written, the likeliest first."""
    import difflib

    model: Any = Config
    is_key = False
    for part in location[:-1]:
        if isinstance(part, int) or is_key:  # of a list or a table, whose elements' model was found already
            is_key = False
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return "remove it"
        annotation = field.annotation
        is_key = get_origin(annotation) is dict
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if hasattr(c, "model_fields")), None)
    keys = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), keys, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(keys)}"


def _check_files(path: Path, config: Config) -> None:
    try:
        _find_files(path, config)
    except PermissionError as error:
        raise ConfigError(f"{path}: {error.filename} cannot be read (permission denied)") from None
    _check_encoder(path, config)
    if config.validation.schema_file is not None:
        from components.schema.curated import read_schema

        read_schema(config.validation.schema_file, list(config.labels), config.label_feature)


def _find_files(path: Path, config: Config) -> None:
    wanted = {
        "data.input": config.data.input,
        "tokenizer.vocab": config.vocab_file,
        "encoder.config": config.encoder_config_file,
        "validation.schema_file": config.validation.schema_file,
        "notify.secret_file": config.notify.secret_file,
    }
    lines = [
        f"  {key}: {value} does not exist" for key, value in wanted.items() if value is not None and not value.exists()
    ]
    if not lines and not config.data.input.is_dir():
        lines.append(f"  data.input: {config.data.input} is a file; name its folder, and the file in data.splits")
    for key, folder in (("paths.root", config.root), ("paths.serving", config.serving_dir)):
        if folder.exists() and not folder.is_dir():
            lines.append(f"  {key}: {folder} is a file; give a folder")
    if wild := set("*?[") & set(str(config.root)):
        lines.append(
            f"  paths.root: {config.root} has {' and '.join(sorted(wild))} in its name, which TFX and Beam take for a "
            "wildcard; give another folder"
        )
    if not lines:
        os.listdir(config.data.input)  # where this is not allowed, a glob would only find nothing
        for split, pattern in config.data.splits.items():
            if next(matching_names(config.data.input, pattern), None) is None:
                lines.append(f"  data.splits.{split}: no file matches {pattern!r} in {config.data.input}")
    if lines:
        raise ConfigError("\n".join([f"{path}: what it points at is missing or cannot be used", *lines]))


def _check_encoder(path: Path, config: Config) -> None:
    """What would otherwise fail a minute into a run: the vocabulary, the encoder's geometry, what its weights need."""
    from components.encoder.config import check_case, geometry_in_use
    from components.trainer.options import check_options

    try:
        tokens = read_tokens(config.vocab_file)
        check_tokens(tokens, str(config.vocab_file))
    except PipelineError as error:
        raise ConfigError(f"{path}: tokenizer.vocab: {error}") from None
    try:
        if config.encoder.weights:
            check_case(tokens, config.tokenizer.lower_case)
        geometry = geometry_in_use(config.encoder_config_file, config.encoder, config.vocab_file)
        if config.encoder.weights and not HUB_NAME.match(config.encoder.weights):
            from components.encoder.companions import check_companions
            from components.encoder.sources import find_source

            source = find_source(config.encoder.weights)
            check_companions(source, geometry, config.vocab_file, config.tokenizer.lower_case)
        check_options(
            config.training, config.encoder, geometry, config.tokenizer.longest_text, config.head,
            config.tokenizer.long_text == "windows",
        )  # fmt: skip
    except PipelineError as error:
        raise ConfigError(f"{path}: {error}") from None
    if config.tokenizer.max_length > geometry.max_position_embeddings:
        raise ConfigError(
            f"{path}: tokenizer.max_length: {config.tokenizer.max_length} is more than the encoder's "
            f"max_position_embeddings, {geometry.max_position_embeddings}"
        )
