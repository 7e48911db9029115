"""Whether the data files have the configured columns, by their headers (JSONL: by as many rows as it takes)."""

from __future__ import annotations

from pathlib import Path

from components.errors import ConfigError, DataError
from components.examples import head
from components.examples.rows import RowSpec
from components.examples.spec import executor_config, row_spec
from pipeline import spans
from pipeline.config import Config


def check_columns(source: str | Path, config: Config) -> None:
    """Looks at every data file; where the data comes as spans, at those of the window's newest.

    Args:
      source: what messages name as the place of a mistake.
      config: whose `data` is meant.

    Raises:
      ConfigError: naming the file, the column and the columns that are there; or a file belongs to two splits; or the
        window holds no span.
    """
    spec = row_spec(executor_config(config.data, config.task, config.labels, config.label_column))
    by_split = spans.find_files(config.data)[spans.spans_of_run(config.data, config.window)[-1]][1]
    owners: dict[str, str] = {}
    try:
        for split, paths in by_split.items():
            for path in paths:
                head.claim(owners, str(path.relative_to(config.data.input)), split)
    except DataError as error:
        raise ConfigError(f"{source}: {error}") from None
    for name in sorted(owners):
        path = config.data.input / name
        try:
            _check_file(path, spec, name)
        except DataError as error:
            raise ConfigError(f"{source}: data.columns: {error}") from None
        except OSError as error:
            raise ConfigError(
                f"{source}: data.input: {path} cannot be read ({error.strerror or 'it is no data file'})"
            ) from None


def _check_file(path: Path, spec: RowSpec, name: str) -> None:
    if spec.format == "parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq

            from components.examples.files import check_parquet
        except ImportError:  # it comes with the extra `pipeline`, which reads such files
            return
        try:
            check_parquet(pq.read_schema(path), spec, name)
        except pa.ArrowInvalid:
            raise DataError(f"{name}: is not a Parquet file, or is damaged") from None
        return
    with path.open("rb") as stream:
        start, _, _ = head.read_head(stream, spec, name)
        if spec.format == "jsonl":
            head.check_keys(stream, start, spec, name)
