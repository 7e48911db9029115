"""The driver of ingest: TFX's, but span, version and files are those of `spans`, and a file counts as changed when its
content is."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from tfx.components.example_gen import driver, input_processor

from components.examples.files import sha256_file
from components.examples.spans import Names, files_of


class ContentInputProcessor(input_processor.InputProcessor):
    """The fingerprint is of the names and contents of the files.

    TFX's own is of sizes and modification times in whole seconds: it takes a copied file for a changed one, and a
    file replaced by one as long within a second for the same.
    """

    def __init__(self, input_base_uri: str, splits: Any, range_config: Any = None) -> None:
        super().__init__(splits=splits, range_config=range_config)
        self._base = input_base_uri
        self._fingerprint = ""

    def resolve_span_and_version(self) -> tuple[int, int | None]:
        """The span and version to ingest.

        Raises:
          DataError: if a split has no file in them. ConfigError: if two folders have the same number.
        """
        span = None
        if self._range_config and self._range_config.HasField("static_range"):
            span = self._range_config.static_range.start_span_number
        span, version, names = files_of(self._base, {split.name: split.pattern for split in self._splits}, span)
        self._fingerprint = self._content_fingerprint(names)
        return span, version

    def get_pattern_for_span_version(self, pattern: str, span: int, version: int | None) -> str:
        """The pattern as it is: what it names in a span and version is for `spans` to say."""
        return pattern

    def get_latest_span(self) -> int:
        """The newest span."""
        return self.resolve_span_and_version()[0]

    def get_input_fingerprint(self, span: int, version: int | None) -> str:
        """That of the files which `resolve_span_and_version` found."""
        return self._fingerprint

    def _content_fingerprint(self, names: Names) -> str:
        digest = hashlib.sha256()
        count = size = 0
        for split, found in names.items():
            for name in found:
                content, length = sha256_file(os.path.join(self._base, name), name)
                digest.update(f"{split}\0{name}\0{content}\n".encode())
                count, size = count + 1, size + length
        return f"num_files:{count},total_bytes:{size},sha256:{digest.hexdigest()}"


class ContentDriver(driver.FileBasedDriver):
    """TFX's driver of file-based ExampleGens with the files and fingerprint of `ContentInputProcessor`."""

    def get_input_processor(self, splits, range_config=None, input_base_uri=None):
        """The processor for `splits` under `input_base_uri`."""
        return ContentInputProcessor(input_base_uri, splits, range_config)
