"""How Beam runs: in this process, in worker processes, or on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from components.config import BeamConfig
from components.errors import ConfigError


def beam_arguments(beam: BeamConfig, files: Iterable[Path] = ()) -> list[str]:
    """Small data stays in this process; large data is spread over workers, each of which imports TensorFlow.

    Args:
      files: the data; looked at only where its size decides.

    Raises:
      ConfigError: Beam does not know one of `beam.pipeline_args`.
    """
    if beam.pipeline_args:
        _refuse_unknown(beam.pipeline_args)
        return list(beam.pipeline_args)
    mode = beam.mode
    if mode == "auto":
        mode = "multi_processing" if unpacked_bytes(files) > beam.parallel_above_mb * 2**20 else "in_memory"
    workers = beam.workers if mode == "multi_processing" else 1
    # Beam's "DirectRunner" would try to download another runner, Prism, at run time; this is the one it falls back to.
    return [
        "--runner=FnApiRunner",
        f"--direct_running_mode={mode}",
        f"--direct_num_workers={workers}",
        # Names an image that local workers never use: without it TFX packs its own sources anew in every Beam step,
        # some seconds and a copy in the temporary folder each, for workers elsewhere.
        "--sdk_container_image=none",
    ]


def unpacked_bytes(files: Iterable[Path]) -> int:
    """The size of the rows in these files: of Parquet, which is compressed, that of its columns unpacked."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    total = 0
    for file in files:
        size = file.stat().st_size
        if file.suffix.lower() == ".parquet":
            with suppress(ArrowException, OSError):  # the ingest names a file that is broken
                found = pq.read_metadata(file)
                size = max(size, sum(found.row_group(group).total_byte_size for group in range(found.num_row_groups)))
        total += size
    return total


def _refuse_unknown(flags: Sequence[str]) -> None:
    """Beam itself drops a misspelt flag with a line in its log. A job server may know more flags than Beam does."""
    from apache_beam.options import pipeline_options

    parser = pipeline_options._BeamArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for options in pipeline_options.PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    try:
        given, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise ConfigError(f"beam.pipeline_args: {error}") from None
    if unknown and not given.job_endpoint and given.runner not in ("PortableRunner", "FlinkRunner", "SparkRunner"):
        raise ConfigError(f"beam.pipeline_args: Beam knows no {unknown[0].partition('=')[0]}")


def runs_here(arguments: Sequence[str]) -> bool:
    """Whether Beam's workers share the files and folders of the process that starts them."""
    local = runner(arguments) in ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
    return local or _flags(arguments).get("environment_type") == "LOOPBACK"


def runner(arguments: Sequence[str]) -> str:
    """The name of the runner."""
    return _flags(arguments).get("runner", "DirectRunner")


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    return dict(flag.removeprefix("--").partition("=")[::2] for flag in arguments)
