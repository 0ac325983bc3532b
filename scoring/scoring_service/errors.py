"""Errors of requests, which are answered, and of the start of the service, which exits."""

from __future__ import annotations


class RequestError(Exception):
    """A request that cannot be served.

    ``status`` is the HTTP status, ``code`` an identifier for programs, ``message`` a sentence for people, ``place``
    the invalid part of the request (``row 3, column BMI``), ``retry_after`` seconds (0: a retry does not help).
    ``message`` goes back to the client and into the log: outside text in it must go through :func:`quote`.
    """

    def __init__(self, status: int, code: str, message: str, place: str = "", retry_after: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.place = place
        self.retry_after = retry_after


class StartError(Exception):
    """The service cannot start.

    ``where`` is the file or setting, ``next_step`` what to do about it. Neither contains a secret.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.next_step = next_step

    def __str__(self) -> str:
        first = f"{self.where}: {self.what}" if self.where else self.what
        return f"{first}\nnext: {self.next_step}" if self.next_step else first


class ConfigurationError(StartError):
    """A setting or a library is missing or invalid."""

    exit_code = 4


class UnavailableError(StartError):
    """The address is already in use or not permitted."""

    exit_code = 5


class PackageError(StartError):
    """The package differs from its hashes, or its model does not load or does not match its signature."""

    exit_code = 8


LIBRARIES = frozenset(("httptools", "msgspec", "numpy", "onnxruntime", "uvloop"))
"""The libraries of the service, which requirements.txt locks."""


def import_failure(error: ImportError) -> ConfigurationError:
    """Return the error for an import of the service's own that failed.

    Only a library of the service that is not installed is a reason to install requirements.txt. Anything else, such as
    a library for another platform, is reported as it is.
    """
    name = (error.name or "").partition(".")[0]
    if name in LIBRARIES and isinstance(error, ModuleNotFoundError):
        next_step = "install requirements.txt beside server.py (requirements/scoring.txt of the repository)"
        return ConfigurationError(f"a library is missing ({error})", where=__file__, next_step=next_step)
    next_step = "compare the installed libraries with requirements.txt beside server.py, and package the model again"
    return ConfigurationError(
        f"cannot import {name or 'a module'} ({quote(str(error))[1:-1]})", where=__file__, next_step=next_step
    )


QUOTED_LENGTH = 60


def quote(value: object) -> str:
    """Return ``value`` as one short line of printable ASCII that no log reader takes for a command.

    Azure Pipelines obeys ``##vso[`` anywhere in a line, so ``#`` is escaped like a control character.
    """
    text = value if isinstance(value, str) else repr(value)
    shown = plain(text[:QUOTED_LENGTH])
    shown += "…" if len(text) > QUOTED_LENGTH else ""
    return f'"{shown}"' if isinstance(value, str) else shown


def plain(text: str) -> str:
    """Return ``text`` with every character but safe printable ASCII written as ``\\uXXXX``."""
    if text.isascii() and text.isprintable() and "#" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if " " <= character <= "~" and character != "#":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
