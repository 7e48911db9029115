"""What each step can be told: one frozen pydantic model a section of the configuration.

`pipeline/config.py` puts the sections together and reads them from TOML; components get them as values.
This module imports nothing but pydantic, so that reading a configuration takes milliseconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

Task = Literal["binary", "multiclass", "multilabel"]
Precision = Literal["float32", "bfloat16", "int8"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Gain = Annotated[float, Field(ge=-1.0, le=1.0)]  # a difference of two shares
Name = Annotated[str, Field(min_length=1)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]  # of a layer
Seconds = Annotated[float, Field(gt=0, le=1e9)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
# organisation/name@commit, on the Hugging Face hub.
HUB_NAME = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[0-9a-f]{40})$")
# Node ids of pipeline/graph.py that a configuration can speak of.
StepName = Literal[
    "weights", "examples", "statistics", "schema", "anomalies", "data_gate", "transform", "tuner", "trainer",
    "evaluator", "serving_check", "push",
]  # fmt: skip
# In a text_pair that is made of neighbours: what stands between the sentences before and those after.
NEIGHBOUR_BREAK = "\n"
# Beam's runners, in lower case and without `runner` at the end (`StandardOptions.ALL_KNOWN_RUNNERS` of Beam 2.77).
BEAM_RUNNERS = frozenset(
    {
        "bundlebaseddirect", "dataflow", "direct", "flink", "fnapi", "interactive", "kafkastreams", "portable", "prism",
        "pythonrpcdirect", "spark", "switchingdirect", "testdataflow", "testdirect",
    }
)  # fmt: skip
METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "pr_auc")
Metric = Literal["accuracy", "macro_f1", "micro_f1", "weighted_f1", "pr_auc"]
GateMetric = Literal[Metric, "calibration_error"]
# Features that the pipeline itself makes; a column to slice by cannot take one of these names.
RESERVED_FEATURES = (
    "text", "text_pair", "label", "labels", "id", "input_ids", "segment_ids", "length", "length_bucket",
    "unknown", "truncated", "key", "span",
    *(of + measure for of in ("", "pair_") for measure in ("characters", "tokens", "unknown_tokens", "token_coverage")),
)  # fmt: skip


class Section(BaseModel):
    """Base of all sections: an unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Without this `true` is taken for 1, "yes" for true, and "3" for 3."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        numbers, others = kinds & {int, float}, kinds - {int, float, NoneType}
        if isinstance(value, bool) and numbers and bool not in kinds:
            raise ValueError("a number is wanted")
        if kinds - {NoneType} == {bool} and value is not None and not isinstance(value, bool):
            raise ValueError("true or false is wanted")
        if isinstance(value, str) and numbers and not others and re.fullmatch(r"\s*[-+]?[\d._]+(e[-+]?\d+)?\s*", value):
            raise ValueError("a number is wanted, written as 3 or 0.5 and without quotes")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, without what is inside tuples and the like."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {get_origin(annotation) or annotation}


def growing(name: str, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths as they are.

    Raises:
      ValueError: one is not greater than the one before.
    """
    if list(lengths) != sorted(set(lengths)):
        raise ValueError(f"{name}: lengths must grow")
    return lengths


class Columns(Section):
    """Which column (CSV, TSV, Parquet) or key (JSONL) holds what. `pubmed_rct` files have fixed columns."""

    text: Name = "text"
    text_pair: Name | None = None  # the second segment: a question, or the context of the text
    label: Name | None = None  # one label a row; default: "label" unless the task is multilabel
    labels: Name | None = None  # several; joined by `label_separator`, or a list in JSONL and Parquet
    id: Name | None = None  # the group (document): no group is ever on two sides of a split
    slices: tuple[Name, ...] = ()  # further columns, to report metrics by

    @model_validator(mode="after")
    def _one_purpose_each(self) -> Columns:
        given = {name: getattr(self, name) for name in ("text", "text_pair", "label", "labels", "id")}
        purposes: dict[str, list[str]] = {}
        for purpose, column in given.items():
            if column is not None:
                purposes.setdefault(column, []).append(purpose)
        for column, names in purposes.items():
            if len(names) > 1:
                raise ValueError(f"columns: {column!r} is the column of {' and of '.join(names)}; each has its own")
        if sliced := [name for name in self.slices if name in (self.label, self.labels)]:
            raise ValueError(f"columns.slices: {sliced} hold labels, by which metrics are reported anyhow")
        return self


class DataConfig(Section):
    """Where the labelled rows are and how they become splits."""

    input: Path  # a folder; relative to the configuration file
    format: Literal["csv", "tsv", "jsonl", "parquet", "pubmed_rct"] = "csv"
    # Glob by split, inside `input`; `{SPAN}` and `{VERSION}` stand for numbers: "span-{SPAN}/train.csv".
    # Either two or three splits by file (train, eval, optionally test), or one entry
    # "all" that is split by hash of the group.
    splits: dict[Literal["train", "eval", "test", "all"], Name]
    hash_split: dict[Literal["train", "eval", "test"], Annotated[int, Field(gt=0, le=1_000_000)]] = {
        "train": 8,
        "eval": 1,
        "test": 1,
    }
    columns: Columns = Columns()
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    # text_pair := so many sentences before and after in the same document (same `id`, adjacent); true: 1. Tokenised and
    # pooled, they are two segments: the sentences before, and those after.
    neighbours: Annotated[int | bool, AfterValidator(int), Field(ge=0)] = 0
    drop_leaked: bool = False  # drop training rows whose text also stands in eval or test
    max_characters: Annotated[int, Field(gt=0, le=1 << 30)] = 1_000_000  # a longer text is a bad row
    max_bad_share: Share = 0.01  # above this share of bad rows the run stops

    @field_validator("input", mode="before")
    @classmethod
    def _is_local(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError("must be a folder of this machine (a mounted one will do)")
        return value

    @model_validator(mode="after")
    def _splits_are_complete(self) -> DataConfig:
        names = set(self.splits)
        if "all" in names and names != {"all"}:
            raise ValueError("splits: 'all' (split by hash) cannot stand beside splits by file")
        if "all" not in names and not {"train", "eval"} <= names:
            raise ValueError("splits: give 'train' and 'eval' (and, better, 'test'), or 'all' to split by hash")
        if not {"train", "eval"} <= set(self.hash_split):
            raise ValueError("hash_split: give the shares of 'train' and 'eval' (and, better, 'test')")
        bad = [glob for glob in self.splits.values() if glob.startswith("/") or "**" in glob or ".." in glob.split("/")]
        if bad:
            raise ValueError(f"splits: {bad[0]!r} must be a glob inside data.input, without '**' and '..'")
        fields = {field for glob in self.splits.values() for field in re.findall(r"\{[^{}]*\}", glob)}
        if unknown := sorted(fields - {"{SPAN}", "{VERSION}"}):
            dates = " A day is the span that is numbered YYYYMMDD: data/{SPAN}/train.csv finds data/20261126/train.csv"
            hint = dates if any(re.search("YYYY|MM|DD", field) for field in unknown) else ""
            raise ValueError(f"splits: {', '.join(unknown)}: the fields are {{SPAN}} and {{VERSION}}.{hint}")
        spans = {"{SPAN}" in glob for glob in self.splits.values()}
        versions = {"{VERSION}" in glob for glob in self.splits.values()}
        if len(spans) > 1 or len(versions) > 1:
            raise ValueError("splits: {SPAN} and {VERSION} must stand in every glob or in none")
        if versions == {True} and spans == {False}:
            raise ValueError("splits: {VERSION} needs {SPAN} beside it")
        if self.neighbours and self.columns.text_pair:
            raise ValueError("neighbours: text_pair comes either from a column or from the neighbours, not both")
        if self.neighbours and not self.columns.id and self.format != "pubmed_rct":
            raise ValueError("neighbours: name the column that holds the document in columns.id")
        reserved = [name for name in self.columns.slices if name in RESERVED_FEATURES]
        if reserved:
            raise ValueError(f"columns.slices: {reserved} are names of the pipeline itself; rename the column")
        if len(set(self.columns.slices)) != len(self.columns.slices):
            raise ValueError("columns.slices: a column stands there twice")
        texts = [name for name in self.columns.slices if name in (self.columns.text, self.columns.text_pair)]
        if texts:
            raise ValueError(f"columns.slices: {texts} hold texts; name columns of few values")
        return self

    @property
    def has_pairs(self) -> bool:
        """Whether examples hold the feature `text_pair`."""
        return bool(self.neighbours) or self.columns.text_pair is not None

    @property
    def has_id(self) -> bool:
        """Whether examples hold the feature `id`."""
        return self.columns.id is not None or self.format == "pubmed_rct"

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that come out, in the order train, eval, test."""
        source = self.hash_split if "all" in self.splits else self.splits
        return tuple(name for name in ("train", "eval", "test") if name in source)


class TokenizerConfig(Section):
    """WordPiece; the default vocabulary is the shipped one of BioBERT (cased)."""

    vocab: Path | None = None  # None: the shipped BioBERT vocabulary
    lower_case: bool = False
    max_length: Annotated[int, Field(ge=3)] = 128  # tokens that the encoder sees at once, special ones included
    # What becomes of a longer text: "truncate" cuts off its end (of a pair, the longer segment's); "windows" has it
    # read in overlapping windows, and the head pools over all of them (single texts alone).
    long_text: Literal["truncate", "windows"] = "truncate"
    overlap: Annotated[int, Field(ge=0)] = 32  # tokens that neighbouring windows share; at most half a window
    max_windows: Annotated[int, Field(ge=2)] = 16  # a text that needs more is truncated to so many

    @model_validator(mode="after")
    def _windows_move_on(self) -> TokenizerConfig:
        if self.long_text == "windows" and self.overlap > (self.max_length - 2) // 2:
            raise ValueError(f"overlap: {self.overlap} tokens are more than half of a window's {self.max_length - 2}")
        return self

    @property
    def longest_text(self) -> int:
        """The greatest number of tokens of a text, special ones included; the rest is truncated."""
        if self.long_text == "truncate":
            return self.max_length
        return self.max_length + (self.max_windows - 1) * (self.max_length - 2 - self.overlap)

    @property
    def window_overlap(self) -> int | None:
        """The tokens that windows share; None where there are none."""
        return self.overlap if self.long_text == "windows" else None


class EncoderConfig(Section):
    """The geometry of BERT, by the names of its `config.json`; values given here override the file's."""

    config: Path | None = None  # a BERT config.json
    weights: str | None = None  # None: random; else a checkpoint, folder or hub name (components/encoder)
    hidden_size: Size | None = None
    num_hidden_layers: Annotated[int, Field(ge=0, le=1000)] | None = None  # 0: embeddings alone
    num_attention_heads: Size | None = None
    intermediate_size: Size | None = None
    max_position_embeddings: Size | None = None
    hidden_dropout_prob: Share | None = None
    attention_probs_dropout_prob: Share | None = None
    trainable: bool = True


HeadKind = Literal["flatten", "stacked", "global_max", "multi_width", "attention", "cls"]


class HeadConfig(Section):
    """The CNN over the token embeddings.

    `flatten`, `stacked` and `global_max` are the tutorial's three, `multi_width` is Kim (2014), `attention`
    pools by learned weights, `cls` is the control without a CNN.
    """

    kind: HeadKind = "multi_width"
    widths: tuple[PositiveInt, ...] = (2, 3, 4, 5)  # stacked: one after the other; multi_width: in parallel
    filters: tuple[PositiveInt, ...] = (160,)  # one for all, or one each
    pool_size: PositiveInt = 2  # flatten: max-pool before flattening
    dense_units: Annotated[int, Field(ge=0)] = 0  # a hidden dense layer before the output; 0: none
    output_scale: PositiveFloat = 1.0  # of the output layer's first weights; 0.1 helps where there are few examples
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    l2: Annotated[float, Field(ge=0)] = 0.0
    batch_norm: bool = False  # `stacked` always normalises
    pool_by_segment: bool = True  # pairs, neighbours: pool the segments apart

    @model_validator(mode="after")
    def _filters_fit_widths(self) -> HeadConfig:
        if not self.widths:
            raise ValueError("widths: give at least one")
        if len(self.filters) not in (1, len(self.widths)):
            raise ValueError(f"filters: give one number, or one for each of the {len(self.widths)} widths")
        return self


class Stage(Section):
    """A part of a training with a schedule of its own; it starts from the best weights of the parts before.

    What is frozen runs as in inference, without dropout.
    """

    layers: Annotated[int, Field(ge=0)] | Literal["all"]  # encoder layers that learn, from the top; all: embeddings too
    epochs: PositiveInt
    learning_rate: PositiveFloat | None = None  # None: training.learning_rate
    cache: bool = True  # the frozen layers' outputs are computed once, and kept on disk while the stage lasts


class TrainingConfig(Section):
    """Optimisation: AdamW, warm-up then linear decay to zero, early stopping with the best weights kept."""

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 32
    batch_tokens: PositiveInt | None = None  # instead: as many texts of like length as have so many tokens, padding too
    accumulate_steps: PositiveInt = 1  # batches whose gradients make one step, as one batch of all their texts would
    learning_rate: PositiveFloat = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor of the rate for each layer further from the head
    stages: tuple[Stage, ...] = ()  # one after the other, instead of `epochs` of everything at once
    warmup_share: Share = 0.1  # of all steps; of a stage's, where there are stages
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # not on biases and norms
    clip_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # above 0: the model is the moving average of the weights
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0  # above 0: focal loss, where the easy counts less
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = "none"
    lora_rank: Annotated[int, Field(ge=0)] = 0  # above 0: the encoder learns low-rank updates of its kernels alone
    lora_alpha: PositiveFloat | None = None  # updates are scaled by alpha / rank; None: by 1
    calibration: Literal["none", "temperature"] = "none"  # fitted on the split `eval`; part of the exported weights
    metric: Metric = "macro_f1"  # early stopping; a pipeline takes that of its first gate over all labels, if not given
    patience: PositiveInt = 2  # epochs without a better metric; ends a stage, where there are stages
    buckets: tuple[PositiveInt, ...] = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # padded lengths
    mixed_precision: bool = False  # bfloat16 on GPU, and on CPUs that have it
    xla: bool = False  # on GPU: the step compiled by XLA, once a bucket; batches are padded to its bound
    checkpoint_steps: PositiveInt = 200  # a killed run goes on from the newest
    seed: Annotated[int, Field(ge=0)] = 1

    @field_validator("buckets")
    @classmethod
    def _buckets_grow(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return growing("buckets", value)

    @field_validator("stages")
    @classmethod
    def _stages_thaw(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        layers = [float("inf") if stage.layers == "all" else stage.layers for stage in value]
        if layers != sorted(layers):
            raise ValueError("stages: each stage trains as many layers as the one before, or more")
        return value

    @model_validator(mode="after")
    def _options_fit_together(self) -> TrainingConfig:
        if self.stages and self.epochs != type(self).model_fields["epochs"].default:
            raise ValueError("epochs: every stage has its own; remove training.epochs or training.stages")
        if self.batch_tokens is not None and self.batch_size != type(self).model_fields["batch_size"].default:
            raise ValueError("batch_tokens: stands in the place of batch_size; remove one of them")
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError("lora_alpha: needs lora_rank above 0")
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma: a focal loss has hard targets; set label_smoothing or focal_gamma to 0")
        return self


class Range(Section):
    """Numbers between two, both included: whole ones where all that is given is whole."""

    min: int | float
    max: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None  # None: any number between, or every whole one
    sampling: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.min >= self.max:
            raise ValueError("min: must be less than max")
        if self.sampling == "log" and self.min <= 0:
            raise ValueError("sampling: log needs a min above 0")
        if self.sampling == "log" and self.step is not None:
            raise ValueError("step: a logarithmic range has none")
        return self


Values = tuple[Any, ...] | Range


class SpaceConfig(Section):
    """What a search may change: by section and key, values to choose from, or a range of numbers."""

    head: dict[str, Values] = {}
    training: dict[str, Values] = {}
    encoder: dict[str, Values] = {}

    def by_name(self) -> dict[str, Values]:
        """Values by "section.key"."""
        sections = {"head": self.head, "training": self.training, "encoder": self.encoder}
        return {f"{section}.{key}": values for section, keys in sections.items() for key, values in keys.items()}

    @model_validator(mode="after")
    def _keys_are_known_and_may_vary(self) -> SpaceConfig:
        models: dict[str, type[Section]] = {"head": HeadConfig, "training": TrainingConfig, "encoder": EncoderConfig}
        if not self.by_name():
            raise ValueError("is empty; name what to search over, for example training.learning_rate")
        for name, values in self.by_name().items():
            section, _, key = name.partition(".")
            known = models[section].model_fields
            if key not in known:
                raise ValueError(f"{name}: is not a known key; known here: {', '.join(known)}")
            if name in _FIXED:
                raise ValueError(f"{name}: stays the same for all trials; remove it")
            if isinstance(values, tuple) and len(values) < 2:
                raise ValueError(f"{name}: give at least two values to choose from")
        return self


# Not for a search: what trials are compared by, where and in which precision, and what the Trainer alone does.
_FIXED = (
    "training.metric", "training.seed", "training.calibration", "training.mixed_precision",
    "training.xla", "training.checkpoint_steps", "encoder.config", "encoder.weights",
)  # fmt: skip


class TunerConfig(Section):
    """A search for hyperparameters before training (KerasTuner), by `training.metric` on the split `eval`."""

    space: SpaceConfig
    max_trials: PositiveInt = 10
    algorithm: Literal["random", "bayesian", "grid"] = "bayesian"
    seed: PositiveInt = 1


class ValidationConfig(Section):
    """What stops a run before training. Thresholds are TFDV's; None switches a comparison off."""

    schema_file: Path | None = None  # a curated schema (`biobert-cnn schema freeze`); None: inferred on the first run
    label_drift: PositiveFloat | None = None  # L-infinity norm against the previous span
    length_drift: PositiveFloat | None = None  # Jensen-Shannon divergence of text lengths
    serving_logs: str | None = None  # glob of TFRecords of PredictionLog, from the model server
    length_skew: PositiveFloat | None = None  # Jensen-Shannon divergence against the serving logs
    min_examples: PositiveInt = 10  # in every split
    min_label_count: Annotated[int, Field(ge=0)] = 2  # rows of every label in train
    max_unknown_share: Share = 0.1  # share of [UNK] among a split's tokens
    min_token_coverage: Share = 0.5  # share of words that stand whole in the vocabulary, mean over texts


class Gate(Section):
    """One bound on one metric of the evaluated split; every metric is from 0 to 1. At least one bound must be given."""

    metric: GateMetric = "macro_f1"
    label: str | None = None  # None: over all labels; else that label's `f1`, `precision` or `recall` in `measure`
    measure: Literal["f1", "precision", "recall"] | None = None
    min: Share | None = None
    max: Share | None = None
    min_gain_over_blessed: Gain | None = None  # e.g. -0.01: at most one point below the latest blessed model
    min_gain_over_baseline: Gain | None = None  # against TF-IDF + linear SVM of the same run

    @model_validator(mode="after")
    def _bounds_something(self) -> Gate:
        bounds = (self.min, self.max, self.min_gain_over_blessed, self.min_gain_over_baseline)
        if all(bound is None for bound in bounds):
            raise ValueError("give min, max, min_gain_over_blessed or min_gain_over_baseline")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min: {self.min:g} is more than max, {self.max:g}: no model can hold both")
        if (self.label is None) != (self.measure is None):
            raise ValueError("label and measure belong together: the label's f1, precision or recall")
        if self.min_gain_over_baseline is not None and self.metric in ("pr_auc", "calibration_error"):
            raise ValueError(
                "min_gain_over_baseline: the SVM gives decisions, not probabilities; use accuracy or an F1"
            )
        return self


class EvaluationConfig(Section):
    """TFMA's metrics and slices, and the gates."""

    split: Literal["eval", "test"] = "test"
    gates: tuple[Gate, ...] = (Gate(metric="macro_f1", min_gain_over_baseline=0.0),)
    length_bounds: tuple[PositiveInt, ...] = (16, 32, 64)  # tokens; slices by length
    bootstrap_samples: Annotated[int, Field(ge=0)] = 1000  # resamples for 95 % intervals; 0: no intervals
    paired_samples: PositiveInt = 2000  # paired bootstrap against the baseline
    baseline: bool = True  # score TF-IDF + linear SVM on the same split in the same run
    min_span_rows: PositiveInt = 200  # window.guard: an old span of fewer rows is judged with the others, not alone

    @field_validator("length_bounds")
    @classmethod
    def _bounds_grow(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return growing("length_bounds", value)


class ExportConfig(Section):
    """The precision of the exported encoder, and what a low one must hold against the same model in float32.

    `float32` keeps every bit. `bfloat16` halves the size, and is faster where the CPU has AVX-512 BF16 or AMX; `int8`
    quarters the encoder's layers, and is faster everywhere, most with VNNI. Head, residuals and normalisation stay in
    float32. The bounds are gates: they are checked on the evaluated split, beside `evaluation.gates`.
    """

    precision: Precision = "float32"
    calibration_texts: PositiveInt = 256  # int8: training texts that show which values each layer is given
    min_agreement: Share = 0.98  # share of rows on which both decide alike
    max_loss: Share = 0.01  # of accuracy and of macro-F1
    min_slice_agreement: Share = 0.95  # the same in every slice of the evaluation: label, length, columns
    max_slice_loss: Share = 0.03  # of accuracy
    min_slice_rows: PositiveInt = 50  # a slice of fewer rows decides nothing
    tolerance: PositiveFloat = 0.02  # of the serving check; in float32 `serving.tolerance`


class ServingConfig(Section):
    """The serving check and what is pushed."""

    model_name: FileName = "biobert_cnn"
    check_examples: PositiveInt = 32  # raw texts sent to the server before a push
    tolerance: PositiveFloat = 1e-5  # against the trainer's own probabilities
    max_latency_ms: PositiveFloat = 1000.0  # median of single-text requests
    load_timeout_s: Seconds = 120.0
    warmup_requests: PositiveInt = 4  # of serving_default; one more for each further signature that clients ask
    keep_versions: PositiveInt = 5


class BeamConfig(Section):
    """How Beam runs. `auto` keeps small data in this process and spreads large data over worker processes."""

    mode: Literal["auto", "in_memory", "multi_processing"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 0  # 0: one a core
    parallel_above_mb: PositiveInt = 64  # auto: input larger than this goes to worker processes
    pipeline_args: tuple[str, ...] = ()  # e.g. --runner=DataflowRunner; replaces all of the above

    @field_validator("pipeline_args")
    @classmethod
    def _are_flags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bad = [flag for flag in value if not flag.startswith("--")]
        if bad:
            raise ValueError(f"{bad[0]!r} is no flag of Beam's; write each as --name=value")
        for flag in value:
            runner = flag.removeprefix("--runner=")
            if runner != flag and "." not in runner and runner.lower().removesuffix("runner") not in BEAM_RUNNERS:
                raise ValueError(
                    f"{flag!r}: Beam has no such runner; it has DirectRunner, FnApiRunner, PortableRunner, "
                    "FlinkRunner, SparkRunner, DataflowRunner, PrismRunner and others, or give a class by its full name"
                )
        return value


def step_name(node_id: str) -> str:
    """What sections call a node of the graph: `examples_N`, the ingest of one span, is `examples`."""
    return "examples" if node_id.startswith("examples_") else node_id


def span_of_step(node_id: str) -> int | None:
    """The N of `examples_N`; None for every other node."""
    prefix, _, span = node_id.rpartition("_")
    return int(span) if prefix == "examples" and span.isdigit() else None


class TryConfig(Section):
    """How often a step is tried, and how long a try may take; None: as the section says."""

    retries: Annotated[int, Field(ge=0)] | None = None
    timeout_s: Seconds | None = None


class LocalConfig(Section):
    """A local run's steps. What is refused or configured wrongly is not tried again."""

    retries: Annotated[int, Field(ge=0)] = 0
    retry_delay_s: Annotated[float, Field(ge=0)] = 10.0
    timeout_s: Seconds | None = None  # of one try; the step then fails, and counts as any other that failed
    steps: dict[StepName, TryConfig] = {}

    def of(self, node_id: str) -> tuple[int, float | None]:
        """Retries and time-out of a node."""
        own = self.steps.get(step_name(node_id), TryConfig())  # type: ignore[call-overload]  # or of a resolver
        return (
            self.retries if own.retries is None else own.retries,
            self.timeout_s if own.timeout_s is None else own.timeout_s,
        )


class PathsConfig(Section):
    """Where results go; relative paths start from the working directory."""

    root: Path | None = None  # artifacts, metadata, logs; None: runs/<configuration's name>
    serving: Path | None = None  # versions for the model server; None: <root>/serving/<model name>

    @field_validator("root", "serving", mode="before")
    @classmethod
    def _are_local(cls, value: object) -> object:
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            raise ValueError("must be the path of a folder")
        if isinstance(value, str) and "://" in value:
            raise ValueError("must be a folder of this machine (a mounted one will do), for runs lock and rename there")
        return value
