"""Predictions with a pushed version, in this process: for a few texts or a file. `score` does it for files of any size.

TensorFlow is imported when a model is loaded, and not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.config import DataConfig
from components.errors import DataError, PipelineError, ServingError
from pipeline.versions import Version, find_version

if TYPE_CHECKING:
    import numpy as np

    from components.examples.rows import Row

BATCH_SIZE = 32
# A batch never holds more text than this, so that a few long ones do not fill the memory.
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Attributes:
      labels: the decision: exactly one label, or for a multilabel model any number.
      probabilities: by class, in the model's order.
      ngrams: by class, what `Predictor.ngrams` gives; None where nobody asked.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]
    ngrams: dict[str, list[tuple[str, float]]] | None = None

    @property
    def label(self) -> str:
        """The labels as one string; "" where none applies."""
        return ";".join(self.labels)


class Predictor:
    """A pushed version, loaded. Not thread-safe while it loads; afterwards it is.

    Args:
      path: the version's folder.
      batch_size: most texts in one call of the model.
      threads: of TensorFlow; 0: one a core. Without effect if TensorFlow has computed something already.

    Attributes:
      classes: the names, in the order of the probabilities.
      multilabel: whether several labels may apply.
      pairs: whether the model takes a second segment.

    Raises:
      ServingError: the folder cannot be loaded, or has not the signature of this pipeline's models.
    """

    def __init__(self, path: Path, batch_size: int = BATCH_SIZE, threads: int = 0) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the ops of the tokeniser

        if threads:
            with suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(threads)
                tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._tf, self._batch_size = tf, batch_size
        try:
            self._model = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ServingError(f"{path}: cannot be loaded as a SavedModel ({type(error).__name__})") from error
        self._serve = self._model.signatures.get("serving_default")
        outputs = set(self._serve.structured_outputs) if self._serve is not None else set()
        if not {"probabilities", "classes"} < outputs:
            raise ServingError(f"{path}: has no signature serving_default with probabilities and classes")
        self.pairs = "text_pair" in self._serve.structured_input_signature[1]
        self.multilabel = "labels" in outputs
        self.classes = tuple(name.decode() for name in self._call([b"-"], [b""])["classes"][0])

    def probabilities(
        self, texts: Sequence[bytes], pairs: Sequence[bytes] | None = None
    ) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """Texts of like length together, answers in the order of the texts.

        Args:
          texts: UTF-8; any bytes get an answer.
          pairs: as many, where the model takes a second segment.

        Returns:
          float32 [texts, classes], and the labels of each text.
        """
        import numpy as np

        sizes = [len(text) + (len(pairs[row]) if pairs is not None else 0) for row, text in enumerate(texts)]
        order = sorted(range(len(texts)), key=lambda row: (sizes[row], row))
        found = np.zeros((len(texts), len(self.classes)), np.float32)
        labels: list[tuple[str, ...]] = [()] * len(texts)
        for batch in self._batches(order, sizes):
            answer = self._call(
                [texts[row] for row in batch], [pairs[row] if pairs is not None else b"" for row in batch]
            )
            found[batch] = answer["probabilities"]
            for place, row in enumerate(batch):
                if self.multilabel:
                    mask = answer["labels"][place]
                    labels[row] = tuple(name for name, applies in zip(self.classes, mask, strict=True) if applies)
                else:
                    labels[row] = (answer["label"][place].decode(),)
        return found, labels

    def predict(self, texts: Sequence[str | bytes], pairs: Sequence[str | bytes] | None = None) -> list[Prediction]:
        """One prediction a text, in order.

        Raises:
          DataError: `pairs` are given and not wanted, or wanted and not given, or not as many.
        """
        self.check_pairs(pairs is not None)
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts and {len(pairs)} second segments: give as many of each")
        seconds = None if pairs is None else [_bytes(pair) for pair in pairs]
        found, labels = self.probabilities([_bytes(text) for text in texts], seconds)
        return [
            Prediction(names, dict(zip(self.classes, shortest(row), strict=True)))
            for names, row in zip(labels, found, strict=True)
        ]

    def ngrams(
        self, texts: Sequence[str | bytes], pairs: Sequence[str | bytes] | None = None
    ) -> list[dict[str, list[tuple[str, float]]]]:
        """Why the model answers as it does: by class, the n-grams that give most to it, and what they add to its logit.

        Args:
          texts, pairs: as `predict`.

        Raises:
          ServingError: the model was exported without explanations, or without the words for them.
        """
        signatures = self._model.signatures
        if "explain" not in signatures or not hasattr(self._model, "vocabulary"):
            raise ServingError(
                "this version was exported before there were explanations in words; run the pipeline again"
            )
        vocabulary = [token.decode() for token in self._model.vocabulary().numpy()]
        found = []
        for text, pair in zip(texts, pairs or [b""] * len(texts), strict=True):
            one = [_bytes(text)], [_bytes(pair)]
            ids = self._call(*one, signatures["tokens"])["input_ids"]
            answer = {name: value[0] for name, value in self._call(*one, signatures["explain"]).items()}
            found.append({name: self._ranked(row, answer, ids, vocabulary) for row, name in enumerate(self.classes)})
        return found

    def _ranked(
        self, row: int, answer: dict[str, np.ndarray], ids: np.ndarray, vocabulary: Sequence[str]
    ) -> list[tuple[str, float]]:
        ranked = []
        for first, end, part in zip(*(answer[name][row].tolist() for name in ("starts", "ends", "parts")), strict=True):
            if end > first:
                pieces = " ".join(vocabulary[number] for number in ids[first:end])
                ranked.append((pieces.replace(" ##", ""), part))
        return ranked

    def check_pairs(self, given: bool) -> None:
        """Raises DataError where the model takes pairs and there are none, or the other way round."""
        if self.pairs and not given:
            raise DataError("the model takes pairs: give a second segment (or an empty one) with every text")
        if given and not self.pairs:
            raise DataError("the model takes single texts: leave the second segment out")

    def _batches(self, order: list[int], sizes: list[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        held = 0
        for row in order:
            if batch and (len(batch) == self._batch_size or held + sizes[row] > _BATCH_BYTES):
                yield batch
                batch, held = [], 0
            batch.append(row)
            held += sizes[row]
        if batch:
            yield batch

    def _call(self, texts: list[bytes], pairs: list[bytes], signature: Any = None) -> dict[str, Any]:
        tf, serve = self._tf, signature or self._serve
        inputs = {"text": tf.constant(texts, tf.string)}
        if self.pairs:
            inputs["text_pair"] = tf.constant(pairs, tf.string)
        try:
            return {name: value.numpy() for name, value in serve(**inputs).items()}
        except tf.errors.OpError as error:
            # Neither its message nor its traceback: an op may quote the text.
            raise ServingError(
                f"the model failed on a batch of {len(texts)} texts with {type(error).__name__}"
            ) from None


def predict(
    serving_dir: Path,
    texts: Sequence[str | bytes],
    pairs: Sequence[str | bytes] | None = None,
    version: int | None = None,
    explain: bool = False,
) -> tuple[Version, list[Prediction]]:
    """Predicts a few texts with a pushed version.

    Args:
      serving_dir: the base path.
      texts, pairs: pairs only for a model that takes them.
      version: None: the live one.
      explain: whether each comes with its n-grams.

    Returns:
      The version, and one prediction a text.

    Raises:
      PushError: there is no such version. ServingError: it cannot be loaded. DataError: pairs do not fit the model.
    """
    found = find_version(serving_dir, version)
    predictor = Predictor(found.path)
    predictions = predictor.predict(texts, pairs)
    if explain:
        ngrams = predictor.ngrams(texts, pairs)
        predictions = [replace(one, ngrams=own) for one, own in zip(predictions, ngrams, strict=True)]
    return found, predictions


def predict_file(
    serving_dir: Path, source: Path, data: DataConfig, version: int | None = None, chunk: int = 1024
) -> Iterator[dict[str, Any]]:
    """Predicts the rows of a file (CSV, TSV, JSONL, Parquet, PubMed RCT; else one text a line), in order.

    Args:
      serving_dir, version: as `predict`.
      source: the file.
      data: which columns to read, from the configuration.
      chunk: rows held at once.

    Yields:
      The rows of `score`: file, line, id, labels, probabilities, version; for a bad row file, line and `error`.

    Raises:
      as `predict`; DataError also where the file cannot be read.
    """
    found = find_version(serving_dir, version)
    rows = _rows(source, data)
    first = next(rows, None)  # what is wrong with the file shows before TensorFlow is imported
    if first is None:
        return
    predictor = Predictor(found.path)
    predictor.check_pairs(data.has_pairs)
    held: list[Any] = [first]
    for row in rows:
        if len(held) == chunk:
            yield from _answer(predictor, found, source, held)
            held = []
        held.append(row)
    yield from _answer(predictor, found, source, held)


def _rows(source: Path, data: DataConfig) -> Iterator[Any]:
    from components.examples import head, parse
    from components.examples.rows import make_row
    from pipeline import inputs

    (file,) = inputs.find_files(source, data)[0] if source.is_file() else (None,)
    if file is None:
        what = "is a folder; `score` takes those" if source.is_dir() else "there is no such file"
        raise DataError(f"{source}: {what}")
    if source.suffix.lower() in inputs.FORMATS or data.format == "pubmed_rct":
        yield from inputs.read_rows(file, data)
        return
    if data.has_pairs:
        raise DataError(f"{source}: plain text has no second segment; give CSV, TSV, JSONL or Parquet")
    spec = inputs.UnlabelledSpec("text", "text", "text", frozenset(), True, max_characters=data.max_characters)
    with source.open("rb") as stream:
        head.check_encoding(stream.read(4), source.name)
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            text = (line.removeprefix(parse.BOM) if number == 1 else line).rstrip(b"\r\n")
            if text:
                yield make_row(spec, number, b"", text=text, text_pair=None, labels=(), id=None, slices=())


def _answer(predictor: Predictor, version: Version, source: Path, rows: list[Any]) -> Iterator[dict[str, Any]]:
    from components.examples.rows import BadRow

    good = [row for row in rows if not isinstance(row, BadRow)]
    pairs = [row.text_pair or b"" for row in good] if predictor.pairs else None
    found, labels = predictor.probabilities([row.text for row in good], pairs)
    answers = iter(zip(good, found, labels, strict=True))
    for row in rows:
        if isinstance(row, BadRow):
            yield {"file": source.name, "line": row.line, "error": row.reason}
        else:
            row, probabilities, names = next(answers)
            yield output_row(source.name, row, names, shortest(probabilities), predictor, version.number)


def output_row(
    file: str, row: Row, labels: Iterable[str], probabilities: list[float], predictor: Predictor, version: int
) -> dict[str, Any]:
    """A row of output; it names where the text stands and never holds it."""
    from pipeline.inputs import row_id

    names = list(labels)
    return {
        "file": file,
        "line": row.line,
        "id": row_id(row),
        **({"labels": names} if predictor.multilabel else {"label": names[0]}),
        "probabilities": dict(zip(predictor.classes, probabilities, strict=True)),
        "version": version,
    }


def shortest(probabilities: np.ndarray) -> list[float]:
    """float32 values as the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in probabilities]


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise PipelineError("a text holds a lone surrogate, which UTF-8 has no form for") from None
