"""The two keys: read from a file or the environment, compared in constant time, replaced while the service runs."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import MutableMapping
from pathlib import Path

from scoring_service.errors import ConfigurationError

SHORTEST = 16
NAMES = ("primary", "secondary")
VARIABLES = ("SCORING_PRIMARY_KEY", "SCORING_SECONDARY_KEY")


class Keys:
    """What is accepted as ``Authorization: Bearer KEY``. No key ever appears in an error or a representation."""

    def __init__(self, primary: str, secondary: str) -> None:
        self._primary, self._secondary = primary.encode(), secondary.encode()

    def accept(self, authorization: bytes | None) -> bool:
        """Whether the header's value holds one of the keys; takes the same time whichever byte is wrong."""
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return False
        given = authorization[7:].strip()
        # Both are compared always: the time must not tell which one was nearly right.
        return hmac.compare_digest(given, self._primary) | hmac.compare_digest(given, self._secondary)


def take_from_env(env: MutableMapping[str, str]) -> Keys:
    """The keys in ``env``, taken out of it so that no code of the model's comes across them there.

    The system still shows what the process was started with (``/proc/self/environ``): a file hides keys better.

    Raises:
        ConfigurationError: there is no primary key, or one is too short to be a secret.
    """
    primary, secondary = (env.pop(name, "").strip() for name in VARIABLES)
    return _checked({"primary": primary, "secondary": secondary or primary}, VARIABLES[0])


def read_file(path: str) -> Keys:
    """The keys in a JSON file ``{"primary": …, "secondary": …}``; raises ConfigurationError when it holds none."""
    try:
        content = json.loads(Path(path).read_bytes())
        found = {name: content.get(name) or "" for name in NAMES}
        if not all(isinstance(key, str) for key in found.values()):
            raise ValueError("a key is text")
    except OSError as error:
        raise ConfigurationError(
            f"cannot be read ({error.strerror})", where=path, next_step="point SCORING_KEYS_FILE to a readable file"
        ) from None
    except (ValueError, AttributeError, RecursionError):
        raise ConfigurationError(
            "is not a file of keys", where=path, next_step='write {"primary": "…", "secondary": "…"} into it'
        ) from None
    return _checked({**found, "secondary": found["secondary"] or found["primary"]}, path)


def _checked(found: dict[str, str], where: str) -> Keys:
    if not found["primary"]:
        raise ConfigurationError(
            "there is no primary key",
            where=where,
            next_step="set SCORING_KEYS_FILE or SCORING_PRIMARY_KEY; SCORING_AUTH=off serves without keys",
        )
    for name, key in found.items():
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError(
                f"the {name} key needs at least {SHORTEST} printable ASCII characters without blanks",
                where=where,
                next_step="make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
    return Keys(found["primary"], found["secondary"])


class KeyRing:
    """The keys in force, and the file they come from, if any."""

    def __init__(self, keys: Keys | None, path: str) -> None:
        self._path = path
        self._seen = self._stamp()
        self.keys = keys

    def accept(self, authorization: bytes | None) -> bool:
        """Whether the request may pass; always, when the service runs without keys."""
        return self.keys is None or self.keys.accept(authorization)

    def has_changed(self) -> bool:
        """Whether the file was touched or replaced since the last look (also by a change of the link to it)."""
        return bool(self._path) and self._stamp() != self._seen

    def reload(self) -> bool:
        """Read the file again; False when there is none. The old keys stay when it is wrong (ConfigurationError)."""
        if not self._path or self.keys is None:
            return False
        self._seen = self._stamp()
        self.keys = read_file(self._path)
        return True

    def _stamp(self) -> tuple[int, int, int]:
        if not self._path:
            return (0, 0, 0)
        try:
            status = os.stat(self._path)
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_size)
