"""The errors of a step. Each message is one line that says where, why and what to do next."""

from __future__ import annotations


class StepError(Exception):
    """A step cannot go on; ``__main__`` prints it as the last line of standard error and ends with ``exit_code``.

    ``where`` names the file (with row and column when known), ``what`` says why, ``next_step`` what to do about it.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, next_step: str) -> None:
        super().__init__(where, what, next_step)
        self.where = where
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        line = " ".join(f"{self.where}: {self.what}; next: {self.next_step}".split())
        # Files are quoted in messages: what they hold must not reach a terminal as a control sequence.
        return "".join(character if character.isprintable() else "?" for character in line)


class DataError(StepError):
    """The data, the parameters, a model or a verdict is not fit for the step."""

    exit_code = 3


class StorageError(StepError):
    """The disk refused to take what the step wanted to write."""

    exit_code = 5


class IntegrityError(StepError):
    """A file is not the one whose hash was noted."""

    exit_code = 8
