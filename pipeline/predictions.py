"""`predict` and `score` on the terminal."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from components.errors import ConfigError
from pipeline.config import Config


def print_texts(config: Config, texts: list[str], version: int | None, as_json: bool, explain: bool = False) -> None:
    """Classifies texts and prints label and probabilities, one text a line or one JSON object; with `explain` also the
    n-grams that the decision comes from.

    Raises:
      ConfigError: the model takes pairs, and an odd number of texts was given.
    """
    pairs = None
    if config.data.has_pairs:
        if len(texts) % 2:
            raise ConfigError("this model takes pairs: give every text followed by its second segment (or '')")
        texts, pairs = texts[::2], texts[1::2]
    with _chatter_aside(config, "predict"):
        from pipeline.predict import predict

        found, predictions = predict(config.serving_dir, texts, pairs, version, explain)
    if as_json:
        rows = [
            {"labels": list(item.labels), "probabilities": item.probabilities}
            | ({"ngrams": item.ngrams} if explain else {})
            for item in predictions
        ]
        print(json.dumps({"version": found.number, "predictions": rows}))
        return
    for item in predictions:
        ranked = sorted(item.probabilities.items(), key=lambda pair: -pair[1])[:5]
        print(f"{item.label or '(none)'}\t" + "  ".join(f"{name} {value:.4f}" for name, value in ranked))
        ngrams = item.ngrams or {}
        for name in item.labels if ngrams else ():
            parts = "  ".join(f"{part:+.3f} {ngram!r}" for ngram, part in ngrams[name])
            print(f"  {name}: {parts or 'no n-gram'}")


def print_file(config: Config, file: Path, version: int | None, as_json: bool = False) -> None:
    """Classifies the rows of a file, in order: one JSON object a line, or with `as_json` one that holds them all."""
    with _chatter_aside(config, "predict"):
        from pipeline.predict import predict_file

        rows = predict_file(config.serving_dir, file, config.data, version)
        if as_json:
            print(json.dumps({"predictions": list(rows)}))
            return
        # Elsewhere JSON's own escapes: those of the stream would be none.
        plain = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        for row in rows:
            print(json.dumps(row, ensure_ascii=plain))


def score_files(
    config: Config,
    source: Path,
    output: Path,
    version: int | None,
    format: Literal["jsonl", "parquet"],
    as_json: bool,
) -> None:
    """Scores files by Beam and prints the manifest's counts."""
    with _chatter_aside(config, "score"):
        from pipeline.beam import beam_arguments
        from pipeline.score import IN_PROCESS, score

        # One process with TensorFlow on all cores is the fastest on one machine, whatever the size.
        arguments = beam_arguments(config.beam) if config.beam.pipeline_args else IN_PROCESS
        manifest = score(
            config.serving_dir, source, output, config.data, version=version, format=format,
            beam_pipeline_args=arguments,
        )  # fmt: skip
    if as_json:
        print(json.dumps(manifest))
        return
    print(
        f"{manifest['rows']} rows, {manifest['bad']['rows']} bad, version {manifest['version']}, "
        f"{manifest['seconds']:.1f} s → {manifest['output']}" + _passed_over(manifest.get("skipped") or [])
    )


def _passed_over(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; passed over: {', '.join(names[:3])}{more} (see manifest.json)"


def _chatter_aside(config: Config, command: str) -> AbstractContextManager[None]:
    """TensorFlow, Beam and the imports of both write what no user can act on."""
    from pipeline.console import chatter_to

    return chatter_to(config.root / "logs" / f"{command}.log")
