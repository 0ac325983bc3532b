"""The two keys: read from a file or the environment, compared in constant time, replaced while the service runs."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import MutableMapping
from pathlib import Path

from scoring_service.errors import ConfigurationError

MIN_LENGTH = 16
NAMES = ("primary", "secondary")
VARIABLES = ("SCORING_PRIMARY_KEY", "SCORING_SECONDARY_KEY")


class Keys:
    """The keys accepted as ``Authorization: Bearer KEY``. No error and no ``repr`` contains a key."""

    def __init__(self, primary: str, secondary: str) -> None:
        self._primary, self._secondary = primary.encode(), secondary.encode()

    def accept(self, authorization: bytes | None) -> bool:
        """Return whether the header's value holds one of the keys, in the same time whichever byte differs."""
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return False
        token = authorization[7:].strip()
        # Always compare both: the time must not tell which key was nearly right.
        return hmac.compare_digest(token, self._primary) | hmac.compare_digest(token, self._secondary)


def take_from_env(env: MutableMapping[str, str]) -> Keys:
    """Return the keys in ``env``, and remove them from it, so that the model's code does not come across them.

    The system still shows the environment of the process's start (``/proc/self/environ``): a file protects keys better.

    Raises:
        ConfigurationError: there is no primary key, or a key is invalid.
    """
    primary, secondary = (env.pop(name, "").strip() for name in VARIABLES)
    return _checked({"primary": primary, "secondary": secondary or primary}, VARIABLES[0])


def read_file(path: str) -> Keys:
    """Return the keys in a JSON file ``{"primary": …, "secondary": …}``.

    Raises:
        ConfigurationError: the file cannot be read, is not JSON of that form, or holds an invalid key.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        keys = {name: content.get(name) or "" for name in NAMES}
        if not all(isinstance(key, str) for key in keys.values()):
            raise ValueError("expected keys as text")
    except OSError as error:
        raise ConfigurationError(
            f"cannot be read ({error.strerror})", where=path, next_step="point SCORING_KEYS_FILE to a readable file"
        ) from None
    except (ValueError, AttributeError, RecursionError):
        raise ConfigurationError(
            "is not a file of keys", where=path, next_step='write {"primary": "…", "secondary": "…"} into it'
        ) from None
    return _checked({**keys, "secondary": keys["secondary"] or keys["primary"]}, path)


def _checked(keys: dict[str, str], where: str) -> Keys:
    if not keys["primary"]:
        raise ConfigurationError(
            "there is no primary key",
            where=where,
            next_step="set SCORING_KEYS_FILE or SCORING_PRIMARY_KEY; SCORING_AUTH=off serves without keys",
        )
    for name, key in keys.items():
        if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError(
                f"invalid {name} key: expected at least {MIN_LENGTH} printable ASCII characters without blanks",
                where=where,
                next_step="generate one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
    return Keys(keys["primary"], keys["secondary"])


class KeyRing:
    """The keys in force, and the file that they are read from, if any."""

    def __init__(self, keys: Keys | None, path: str) -> None:
        self._path = path
        self._seen = self._stamp()
        self.keys = keys

    def accept(self, authorization: bytes | None) -> bool:
        """Return whether the request is allowed. Without keys every request is."""
        return self.keys is None or self.keys.accept(authorization)

    def has_changed(self) -> bool:
        """Return whether the file was touched or replaced since it was last read, also by a change of a link to it."""
        return bool(self._path) and self._stamp() != self._seen

    def reload(self) -> bool:
        """Read the file again. Return False if the keys do not come from a file.

        Raises:
            ConfigurationError: the file is invalid. The old keys stay in force.
        """
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
