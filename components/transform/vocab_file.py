"""The one way in which a `vocab.txt` is read."""

from os import PathLike

from components.errors import ConfigError


def read_tokens(path: str | PathLike[str]) -> list[str]:
    """The tokens of a vocabulary file, one a line; a token's place is its id.

    Only line feeds (and carriage returns before or in place of them) end a line: other separators, such as U+2028, are
    part of a token.

    Raises:
      ConfigError: the file cannot be read or is not UTF-8.
    """
    remedy = "Give the vocab.txt that belongs to the encoder."
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]
    except OSError as error:
        raise ConfigError(f"vocabulary file {path}: cannot be read ({error.strerror}). {remedy}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"vocabulary file {path}: not UTF-8 (byte {error.start}). {remedy}") from error
