"""The door to azureml-sdk: importing it, signing in, retrying what may be retried, translating what it raises.

The SDK is imported when it is used: it takes seconds, exists up to Python 3.11 only, and not every environment has it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

from ml_service.azure_devops import sanitize_log_line
from ml_service.config import AzureSettings, Settings
from ml_service.errors import INSTALL, ConfigurationError, MlopsError, UnavailableError

# Read by the SDK when it is imported. Its own default waits 32 s after one 429.
_RETRY_SETTINGS = {"AZUREML_DEFAULT_BACKOFF": "4", "AZUREML_DEFAULT_RETRIES": "3", "AZUREML_DEFAULT_503_BACKOFF": "2"}
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_STATUS = re.compile(r"(?:\bCode:\s*|status[_ ]code\W+|\(|\btoo many )(\d{3})\b", re.IGNORECASE)
_UNREACHABLE = (
    "ChunkedEncodingError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ClientRequestError",
    "ServiceRequestError",
    "Timeout",
)
_SIGNATURE = re.compile(r"\?[^\s'\"]*\bsig=[^\s'\"]*")
"""What signs an address of the storage: whoever reads it may read the file."""
_SIGN_IN = {"AuthenticationException", "ClientAuthenticationError"}
_SIGN_IN_WORDS = ("AADSTS", "az login", "Azure CLI")
_ATTEMPTS = 3
_TOKEN_MARGIN = 300
"""Seconds before its end at which a token is asked for anew: as early as the SDK renews its own."""

T = TypeVar("T")


class _Filter:
    """A standard stream that drops what the SDK prints, and passes on the rest.

    The SDK speaks in the thread that called it and in those that it started, which are those that nobody knew before.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        hushed = getattr(_hushed, "yes", False) or threading.current_thread() not in _known
        return len(text) if hushed else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_hushed = threading.local()
_changing = threading.Lock()
_users: list[threading.Thread] = []
_known: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""The threads that were there before the SDK was called."""
_born: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""The threads that began during its calls: a later call must not take one that lives on for ours."""
_streams: dict[str, tuple[Any, Any]] = {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread and those it starts print: the SDK reports to standard output, which belongs to us.

    ``contextlib.redirect_stdout`` holds for all threads at once, and two that overlap leave it redirected.
    """
    before = getattr(_hushed, "yes", False)
    with _changing:
        if not _users:
            _known.update(set(threading.enumerate()).difference(_born))
            for name in ("stdout", "stderr"):
                _streams[name] = (getattr(sys, name), _Filter(getattr(sys, name)))
                setattr(sys, name, _streams[name][1])
        _users.append(threading.current_thread())
        _known.add(threading.current_thread())
    _hushed.yes = True
    try:
        yield
    finally:
        _hushed.yes = before
        with _changing:
            _users.pop()
            _born.update(set(threading.enumerate()).difference(_known))
            for name, (original, filtered) in _streams.items() if not _users else ():
                if getattr(sys, name) is filtered:
                    setattr(sys, name, original)


def import_sdk() -> Any:
    """``azureml.core``, told to be patient within bounds and to keep its prints to itself.

    Raises:
        ConfigurationError: it is not installed.
    """
    for name, value in _RETRY_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("azureml", "msrest", "msal", "azure"):
        # Warnings of the SDK hold text from Azure; what matters is raised as an error, with its text sanitized.
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    try:
        with quiet():
            import azureml.core
            import azureml.pipeline.core  # noqa: F401  (teaches azureml.core what a pipeline's run is)
    except ImportError as error:
        raise ConfigurationError(
            f"azureml-sdk is not installed here ({error})", where="--platform azureml", next_step=INSTALL
        ) from None
    return azureml.core


def connect(settings: Settings) -> Any:
    """The workspace that the settings name, signed in.

    Raises:
        ConfigurationError: a setting or the SDK is missing.
        UnavailableError: the sign-in or the workspace was refused or cannot be reached; says which sign-in was tried.
    """
    azure = settings.azure
    require(azure, "subscription_id", "resource_group", "workspace_name")
    core = import_sdk()
    method, authentication = sign_in(settings)
    where = f"workspace {azure.resource_group}/{azure.workspace_name} (signed in by {method})"
    return attempt(
        lambda: core.Workspace(azure.subscription_id, azure.resource_group, azure.workspace_name, auth=authentication),
        where,
    )


def require(azure: AzureSettings, *names: str) -> None:
    """Raise ConfigurationError naming every setting that is empty."""
    missing = [name.upper() for name in names if not getattr(azure, name)]
    if missing:
        raise ConfigurationError(
            f"not set: {', '.join(missing)}",
            where="--platform azureml",
            next_step="set them as .env.example says, or try without Azure: inv azureml-emulator",
        )


def sign_in(settings: Settings) -> tuple[str, Any]:
    """How we sign in, in words, and the SDK's object for it: service principal, managed identity, or the Azure CLI."""
    azure = settings.azure
    if azure.sp_app_id or azure.sp_app_secret:
        require(azure, "tenant_id", "sp_app_id", "sp_app_secret")
        return f"service principal {azure.sp_app_id}", _service_principal(azure)
    if settings.env.get("IDENTITY_ENDPOINT") or settings.env.get("MSI_ENDPOINT"):
        from azure.identity import ManagedIdentityCredential

        return "managed identity", _by_token(ManagedIdentityCredential())
    from azure.identity import AzureCliCredential

    return "Azure CLI, since SP_APP_ID is not set", _by_token(AzureCliCredential(process_timeout=30))


def _service_principal(azure: AzureSettings) -> Any:
    from azureml.core.authentication import ServicePrincipalAuthentication

    return ServicePrincipalAuthentication(azure.tenant_id, azure.sp_app_id, azure.sp_app_secret)


def _by_token(credential: Any) -> Any:
    # The SDK's own AzureCliAuthentication needs the azure-cli package in this environment; the command is enough here.
    from azureml.core.authentication import TokenAuthentication

    return TokenAuthentication(get_token_for_audience=kept_tokens(credential))


def kept_tokens(credential: Any) -> Callable[[str], str]:
    """The token for an audience, kept until shortly before its end.

    The SDK asks for one with each of its requests, and the credential of the Azure CLI starts ``az`` each time.
    """
    kept: dict[str, Any] = {}

    def token(audience: str) -> str:
        # An audience is either a resource's address or one of the SDK's two names for them.
        resource = audience if str(audience).startswith("http") else "https://management.azure.com/"
        scope = f"{resource.rstrip('/')}/.default"
        if scope not in kept or kept[scope].expires_on - _TOKEN_MARGIN <= time.time():
            kept[scope] = credential.get_token(scope)
        return str(kept[scope].token)

    return token


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Whatever the SDK raises becomes one of our errors that names ``where``; what it prints is dropped.

    The SDK raises from half a dozen libraries, and KeyError or TypeError for an answer that it did not expect.
    """
    try:
        with quiet():
            yield
    except MlopsError:
        raise
    except Exception as error:
        raise translate(error, where) from None


def attempt(call: Callable[[], T], where: str, *, attempts: int = _ATTEMPTS) -> T:
    """``call``, again after a transient failure, at most ``attempts`` times. Only for calls that may happen twice."""
    for left in reversed(range(attempts)):
        try:
            with quiet():
                return call()
        except MlopsError:
            raise
        except Exception as error:
            if not left or not is_transient(error):
                raise translate(error, where) from None
            time.sleep(2 ** (attempts - 1 - left))
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int:
    """The HTTP status behind an exception of the SDK; 0 when there is none."""
    for holder in (error, getattr(error, "response", None), getattr(error, "error", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    match = _STATUS.search(_text(error))
    return int(match.group(1)) if match else 0


def _text(error: BaseException) -> str:
    """What an exception says. The SDK's own cannot be shown as text when Azure's answer had no details."""
    try:
        return str(error)
    except Exception:
        return str(getattr(error, "message", "") or type(error).__name__)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a moment later."""
    return status_of(error) in _TRANSIENT or is_unreachable(error)


def is_missing(error: BaseException) -> bool:
    """Whether the SDK says that something does not exist: by the status, by words only where that says nothing."""
    status, text = status_of(error), _text(error)
    return status == 404 or (status in (0, 400) and ("NotFound" in text or "not found" in text))


def is_unreachable(error: BaseException) -> bool:
    """Whether no answer came at all."""
    unanswered = bool(_kinds(error) & set(_UNREACHABLE)) or isinstance(error, ConnectionError | TimeoutError)
    return unanswered and not status_of(error)


def _kinds(error: BaseException) -> set[str]:
    """The names of an exception's classes: half a dozen libraries would have to be imported for the classes."""
    return {kind.__name__ for kind in type(error).__mro__}


def translate(error: BaseException, where: str) -> UnavailableError:
    """What people are told about an exception of the SDK."""
    said = first_line(error)
    status = status_of(error)
    for applies, what, next_step in _explanations(error, status):
        if applies:
            return UnavailableError(f"{what}: {said}", where=where, next_step=next_step)
    return UnavailableError(f"Azure answered: {said}", where=where, next_step="run: inv doctor --platform azureml")


def _explanations(error: BaseException, status: int) -> list[tuple[bool, str, str]]:
    text = _text(error)
    return [
        (is_unreachable(error), "cannot be reached", f"check the network{_proxy()}, then try again"),
        (
            status == 401 or any(word in text for word in _SIGN_IN_WORDS) or bool(_kinds(error) & _SIGN_IN),
            "the sign-in was refused",
            "check TENANT_ID, SP_APP_ID and SP_APP_SECRET, or run: az login",
        ),
        (
            status == 403 or "AuthorizationFailed" in text,
            "no rights",
            "ask for the role AzureML Data Scientist (or Contributor) on the workspace",
        ),
        (
            "quota" in text.lower(),
            "beyond the quota",
            "ask for more quota, or set AML_CLUSTER_MAX_NODES or AML_COMPUTE_CLUSTER_CPU_SKU to less",
        ),
        (is_missing(error), "does not exist", "check SUBSCRIPTION_ID, RESOURCE_GROUP and WORKSPACE_NAME"),
        (status == 429, "too many requests, also after waiting", "try again in some minutes"),
        (status >= 500, "Azure has a fault of its own", "try again; see https://status.azure.com"),
    ]


def _proxy() -> str:
    """The proxy that requests go through, without its password."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    return f" and the proxy {proxy.rpartition('@')[2].removeprefix('http://')}" if proxy else ""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line that is safe to print."""
    text = _text(error)
    text = _SIGNATURE.sub("?…", text)
    found = re.search(r"Message:\s*(.+)", text) or re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', text)
    line = found.group(1) if found else (text.strip().splitlines() or [""])[0]
    return sanitize_log_line(f"{line[:400] or type(error).__name__}")
