"""Import a library without one of its optional dependencies, where that takes seconds to load and is not used here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Make ``import name`` fail with ImportError inside the block, as if it were not installed.

    Python takes None in ``sys.modules`` for "not there". A module that has been imported already is left as it is.
    """
    hide = name not in sys.modules
    if hide:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules[name]
