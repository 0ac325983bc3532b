"""Microsoft's sign-in: issue a token to anyone who has the emulator's secret, and check the tokens of calls."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from urllib.parse import parse_qs

from emulators.wire.account import TENANT, Account
from emulators.wire.http import HttpError, Request, Response, Routes

SECRET = "emulated-secret"
MANAGED_IDENTITY = "http://169.254.169.254/msi/token"
"""The IDENTITY_ENDPOINT of a host with a managed identity; its IDENTITY_HEADER is ``SECRET``."""
_KEY = b"throw-away"

routes = Routes(r"login\.(microsoftonline\.com|windows\.net)|169\.254\.169\.254", open=True)


@routes.on("GET", r"/{tenant}/v2.0/.well-known/openid-configuration")
def configuration(world: Account, request: Request, tenant: str) -> Response:
    base = f"https://login.microsoftonline.com/{tenant}"
    return Response(
        200,
        {
            "issuer": f"{base}/v2.0",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "tenant_region_scope": None,
        },
    )


@routes.on("GET", "/common/discovery/instance")
def instance(world: Account, request: Request) -> Response:
    names = ["login.microsoftonline.com", "login.windows.net"]
    metadata = [{"preferred_network": names[0], "preferred_cache": names[1], "aliases": names}]
    tenant = f"https://login.microsoftonline.com/{TENANT}/v2.0/.well-known/openid-configuration"
    return Response(200, {"tenant_discovery_endpoint": tenant, "api-version": "1.1", "metadata": metadata})


@routes.on("POST", r"/{tenant}/oauth2/(v2\.0/)?token")
def token(world: Account, request: Request, tenant: str) -> Response:
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    if tenant != TENANT:
        return _refused("invalid_request", f"AADSTS90002: Tenant '{tenant}' not found.")
    if form.get("client_secret") != SECRET:
        return _refused("invalid_client", "AADSTS7000215: Invalid client secret provided.")
    access = make_token(world, form.get("client_id", ""))
    life = {"expires_in": int(world.token_life), "ext_expires_in": int(world.token_life)}
    return Response(200, {"token_type": "Bearer", "access_token": access, **life})


@routes.on("GET", "/msi/token")
def managed_identity(world: Account, request: Request) -> Response:
    """Answer like the token endpoint on the host of an App Service that has a managed identity."""
    if request.headers.get("x-identity-header") != SECRET:
        return Response(401, {"statusCode": 401, "message": "the header is not this host's"})
    return Response(
        200,
        {
            "access_token": make_token(world, "managed-identity"),
            "expires_on": str(int(time.time() + world.token_life)),
            "resource": request.query.get("resource", ""),
            "token_type": "Bearer",
        },
    )


def _refused(code: str, message: str) -> Response:
    return Response(401, {"error": code, "error_description": message, "error_codes": [7000215]})


def make_token(world: Account, subject: str) -> str:
    """Return a signed JWT for ``subject`` that is valid for ``world.token_life`` seconds."""
    issued = time.time()
    claims = {
        "aud": "https://management.azure.com/",
        "iss": f"https://sts.windows.net/{TENANT}/",
        "iat": issued,
        "nbf": int(issued),
        "exp": int(issued + world.token_life),
        "tid": TENANT,
        "appid": subject,
        "oid": subject,
        "name": subject,
    }
    signed = f"{_encode({'typ': 'JWT', 'alg': 'HS256'})}.{_encode(claims)}"
    return f"{signed}.{_base64(hmac.digest(_KEY, signed.encode(), 'sha256'))}"


def check_token(world: Account, request: Request) -> None:
    """Check the bearer token of a call.

    Raises:
        HttpError: 401, it is missing, forged, expired or revoked.
    """
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    signed, _, signature = bearer.rpartition(".")
    if not hmac.compare_digest(signature, _base64(hmac.digest(_KEY, signed.encode(), hashlib.sha256))):
        raise HttpError(401, "AuthenticationFailed", "Authentication failed: no valid bearer token.")
    body = signed.partition(".")[2]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    if claims["exp"] <= time.time() or claims["iat"] < world.revoked_before:
        raise HttpError(401, "ExpiredAuthenticationToken", "The access token has expired.")


def _encode(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
