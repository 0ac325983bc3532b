"""Import azureml-sdk, sign in, retry calls that may be retried, and translate the exceptions that it raises.

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
"""The query of a signed storage address. Anybody who has it may read the file, so it is never printed."""
_SIGN_IN = {"AuthenticationException", "ClientAuthenticationError"}
_SIGN_IN_WORDS = ("AADSTS", "az login", "Azure CLI")
_ATTEMPTS = 3
_TOKEN_MARGIN = 300
"""Seconds before its expiry at which a token is renewed: as early as the SDK renews its own."""

T = TypeVar("T")


class _Filter:
    """A standard stream that drops what the SDK prints, and passes on the rest.

    The SDK prints in the thread that called it and in threads that it started. The latter are recognised by not having
    existed before the first call.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        muted = getattr(_muted, "yes", False) or threading.current_thread() not in _known
        return len(text) if muted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_muted = threading.local()
_changing = threading.Lock()
_users: list[threading.Thread] = []
_known: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""The threads that existed before the SDK was called: ours."""
_born: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""The threads that began during its calls: a later call must not take one that lives on for one of ours."""
_streams: dict[str, tuple[Any, Any]] = {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread and those it starts print inside the block: the SDK prints to standard output.

    ``contextlib.redirect_stdout`` redirects all threads at once, and two that overlap leave the stream redirected. Here
    the first block that is entered replaces the streams by filters, the last one that is left restores them, and the
    filter decides by thread. Threads that overlap may enter and leave in any order.
    """
    before = getattr(_muted, "yes", False)
    with _changing:
        if not _users:
            _known.update(set(threading.enumerate()).difference(_born))
            for name in ("stdout", "stderr"):
                _streams[name] = (getattr(sys, name), _Filter(getattr(sys, name)))
                setattr(sys, name, _streams[name][1])
        _users.append(threading.current_thread())
        _known.add(threading.current_thread())
    _muted.yes = True
    try:
        yield
    finally:
        _muted.yes = before
        with _changing:
            _users.pop()
            _born.update(set(threading.enumerate()).difference(_known))
            for name, (original, filtered) in _streams.items() if not _users else ():
                if getattr(sys, name) is filtered:
                    setattr(sys, name, original)


def import_sdk() -> Any:
    """Import ``azureml.core`` with short retries and without its log output, and return it.

    Raises:
        ConfigurationError: the SDK is not installed.
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
    """Sign in, and return the workspace that the settings name.

    Raises:
        ConfigurationError: a setting or the SDK is missing.
        UnavailableError: the sign-in or the workspace was refused or cannot be reached. It names the kind of sign-in.
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
    """Check that settings are set.

    Raises:
        ConfigurationError: one is empty. It names all that are.
    """
    missing = [name.upper() for name in names if not getattr(azure, name)]
    if missing:
        raise ConfigurationError(
            f"not set: {', '.join(missing)}",
            where="--platform azureml",
            next_step="set them as .env.example says, or try without Azure: inv azureml-emulator",
        )


def sign_in(settings: Settings) -> tuple[str, Any]:
    """Return how to sign in, in words, and the SDK's object for it.

    That is a service principal where one is set, else a managed identity on a host that has one, else the Azure CLI.

    Raises:
        ConfigurationError: the service principal is set only in part.
    """
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

    return TokenAuthentication(get_token_for_audience=cached_tokens(credential))


def cached_tokens(credential: Any) -> Callable[[str], str]:
    """Return a function from an audience to its token, which is cached until shortly before it expires.

    The SDK wants a token for each of its requests, and the credential of the Azure CLI starts ``az`` for each.
    """
    cache: dict[str, Any] = {}

    def token(audience: str) -> str:
        # An audience is either a resource's address or one of the SDK's two names for them.
        resource = audience if str(audience).startswith("http") else "https://management.azure.com/"
        scope = f"{resource.rstrip('/')}/.default"
        if scope not in cache or cache[scope].expires_on - _TOKEN_MARGIN <= time.time():
            cache[scope] = credential.get_token(scope)
        return str(cache[scope].token)

    return token


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn any exception of the SDK inside the block into UnavailableError naming ``where``. Drop what it prints.

    The SDK raises the exceptions of half a dozen libraries, and KeyError or TypeError for a response that it did not
    expect.

    Raises:
        UnavailableError: as ``translate`` words it.
    """
    try:
        with quiet():
            yield
    except MlopsError:
        raise
    except Exception as error:
        raise translate(error, where) from None


def attempt(call: Callable[[], T], where: str, *, attempts: int = _ATTEMPTS) -> T:
    """Return the result of ``call``, which is repeated after transient failures, with pauses of 1, 2, … seconds.

    Only for calls that may happen twice: a response may be lost after the service did the work.

    Raises:
        UnavailableError: it failed ``attempts`` times, or with an error that will not pass.
    """
    for attempts_left in reversed(range(attempts)):
        try:
            with quiet():
                return call()
        except MlopsError:
            raise
        except Exception as error:
            if not attempts_left or not is_transient(error):
                raise translate(error, where) from None
            time.sleep(2 ** (attempts - 1 - attempts_left))
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int:
    """Return the HTTP status behind an exception of the SDK, 0 when there is none."""
    for holder in (error, getattr(error, "response", None), getattr(error, "error", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    match = _STATUS.search(_text(error))
    return int(match.group(1)) if match else 0


def _text(error: BaseException) -> str:
    """Return an exception's text. ``str`` fails for those of the SDK when Azure's response had no details."""
    try:
        return str(error)
    except Exception:
        return str(getattr(error, "message", "") or type(error).__name__)


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later."""
    return status_of(error) in _TRANSIENT or is_unreachable(error)


def is_missing(error: BaseException) -> bool:
    """Return whether something does not exist: by the HTTP status, and by words only where there is no clear status."""
    status, text = status_of(error), _text(error)
    return status == 404 or (status in (0, 400) and ("NotFound" in text or "not found" in text))


def is_unreachable(error: BaseException) -> bool:
    """Return whether no response came at all."""
    unanswered = bool(_kinds(error) & set(_UNREACHABLE)) or isinstance(error, ConnectionError | TimeoutError)
    return unanswered and not status_of(error)


def _kinds(error: BaseException) -> set[str]:
    """Return the names of an exception's classes. The classes would cost imports of half a dozen libraries."""
    return {kind.__name__ for kind in type(error).__mro__}


def translate(error: BaseException, where: str) -> UnavailableError:
    """Return the error that reports an exception of the SDK, with what to do next."""
    message = first_line(error)
    status = status_of(error)
    for applies, what, next_step in _explanations(error, status):
        if applies:
            return UnavailableError(f"{what}: {message}", where=where, next_step=next_step)
    return UnavailableError(f"Azure answered: {message}", where=where, next_step="run: inv doctor --platform azureml")


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
    """Return which proxy requests go through, without its password."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    return f" and the proxy {proxy.rpartition('@')[2].removeprefix('http://')}" if proxy else ""


def first_line(error: BaseException) -> str:
    """Return an exception's message, in one line that is safe to print."""
    text = _text(error)
    text = _SIGNATURE.sub("?…", text)
    message = re.search(r"Message:\s*(.+)", text) or re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', text)
    line = message.group(1) if message else (text.strip().splitlines() or [""])[0]
    return sanitize_log_line(f"{line[:400] or type(error).__name__}")
