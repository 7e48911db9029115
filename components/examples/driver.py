"""The driver of ingest: TFX's, but a file counts as changed when its content is."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from typing import Any

from tfx.components.example_gen import driver, input_processor
from tfx.dsl.io import fileio

from components.errors import DataError
from components.examples.files import sha256_file


def matching_files(base: str, pattern: str) -> list[str]:
    """The files under `base` that match a glob, sorted; a bracket in `base` itself is no part of the glob.

    As in a shell, a wildcard matches no hidden file: editors and copying programs leave such files beside the data.
    """
    folder = base if "://" in base else glob.escape(base)
    found = sorted(str(path) for path in fileio.glob(os.path.join(folder, pattern)))
    return [path for path in found if not fileio.isdir(path) and not _is_hidden(path, base, pattern)]


def _is_hidden(path: str, base: str, pattern: str) -> bool:
    parts, globs = os.path.relpath(path, base).split("/"), pattern.split("/")
    return any(part.startswith(".") and not wild.startswith(".") for part, wild in zip(parts, globs, strict=True))


class ContentInputProcessor(input_processor.FileBasedInputProcessor):
    """Finds span and version as TFX does; the fingerprint is of the names and contents of the files.

    TFX's own is of sizes and modification times in whole seconds: it takes a copied file for a changed one, and a
    file replaced by one as long within a second for the same. Remote files keep it: reading them twice is dear.
    """

    def resolve_span_and_version(self) -> tuple[int, int | None]:
        """The span and version to ingest.

        Raises:
          DataError: if no files match, or the newest span or version differs between the splits.
        """
        try:
            span, version = super().resolve_span_and_version()
        except ValueError as error:
            raise DataError(f"data.splits in {self._input_base_uri}: {error}") from None
        if "://" not in self._input_base_uri:
            fingerprint: Any = self._content_fingerprint(span, version)
            self._fingerprint = fingerprint
        return span, version

    def get_pattern_for_span_version(self, pattern: str, span: int, version: int | None) -> str:
        """The pattern with its span and version filled in, with as many leading zeros as the folders have."""
        filled = super().get_pattern_for_span_version(pattern, span, version)
        if "{" not in pattern or matching_files(self._input_base_uri, filled):
            return filled
        for zeros, more in itertools.product(range(1, 11), repeat=2):
            padded = pattern.replace("{SPAN}", str(span).zfill(zeros))
            padded = padded.replace("{VERSION}", str(version).zfill(more))
            if matching_files(self._input_base_uri, padded):
                return padded
        return filled

    def _content_fingerprint(self, span: int, version: int | None) -> str:
        digest = hashlib.sha256()
        count = size = 0
        for split in self._splits:
            pattern = self.get_pattern_for_span_version(split.pattern, span, version)
            for path in matching_files(self._input_base_uri, pattern):
                name = os.path.relpath(path, self._input_base_uri)
                content, length = sha256_file(path, name)
                digest.update(f"{split.name}\0{name}\0{content}\n".encode())
                count, size = count + 1, size + length
        return f"num_files:{count},total_bytes:{size},sha256:{digest.hexdigest()}"


class ContentDriver(driver.FileBasedDriver):
    """TFX's driver of file-based ExampleGens with the fingerprint of `ContentInputProcessor`."""

    def get_input_processor(self, splits, range_config=None, input_base_uri=None):
        """The processor for `splits` under `input_base_uri`."""
        return ContentInputProcessor(input_base_uri, splits, range_config)
