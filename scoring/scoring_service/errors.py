"""What can go wrong: with a request, which is answered, and with the start of the service, which is refused."""

from __future__ import annotations


class RequestError(Exception):
    """A request that cannot be answered as asked.

    ``status`` is the HTTP status, ``code`` a word for programs, ``message`` a sentence for people, ``place`` where in
    the request it is wrong (``row 3, column BMI``). ``retry_after`` is in seconds, 0 when trying again does not help.
    ``message`` goes back to the client and into the log: it must quote outside text through :func:`quote` only.
    """

    def __init__(self, status: int, code: str, message: str, place: str = "", retry_after: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.place = place
        self.retry_after = retry_after


class StartError(Exception):
    """The service cannot start: ``where`` is the file or setting, ``next_step`` what helps. Never holds a secret."""

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
    """A setting is missing or wrong."""

    exit_code = 4


class UnavailableError(StartError):
    """The address to listen on cannot be had."""

    exit_code = 5


class PackageError(StartError):
    """The package is not what its hashes or its signature say, or its model cannot be loaded."""

    exit_code = 8


QUOTED_LENGTH = 60


def quote(value: object) -> str:
    """``value`` as it may be shown: one line of printable ASCII, cut short, that no log reader takes for a command.

    Azure Pipelines obeys ``##vso[`` anywhere in a line, so ``#`` is escaped like a control character.
    """
    text = value if isinstance(value, str) else repr(value)
    shown = plain(text[:QUOTED_LENGTH])
    shown += "…" if len(text) > QUOTED_LENGTH else ""
    return f'"{shown}"' if isinstance(value, str) else shown


def plain(text: str) -> str:
    """``text`` with everything but harmless printable ASCII written as ``\\uXXXX``."""
    if text.isascii() and text.isprintable() and "#" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if " " <= character <= "~" and character != "#":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
