"""HTTP sessions for endpoints: without a proxy on this machine and network, with the usual one for Azure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import Session


def session_for(url: str) -> Session:
    """Return a session for the endpoint at ``url``.

    A proxy of the environment has no business before an endpoint of this machine or network; one in Azure may be
    reachable through it alone. No ``.netrc`` ever meets the endpoint's key.
    """
    import requests

    session = requests.Session()
    session.trust_env = False
    if is_in_azure(url):
        session.proxies = dict(requests.utils.get_environ_proxies(url))
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    return session


def is_in_azure(url: str) -> bool:
    """Return whether ``url`` names a host in Azure's domains for container groups and web apps."""
    return (urlsplit(url).hostname or "").endswith((".azurecontainer.io", ".azurewebsites.net"))
