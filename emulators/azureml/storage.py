"""Blob storage: block blobs in files. Keys and SAS signatures are not checked."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from emulators.azureml.world import World
from emulators.wire.http import Request, Response, Routes

ACCOUNT_KEY = base64.b64encode(b"the emulator checks no key").decode()

routes = Routes(r"[a-z0-9]+\.blob\.core\.windows\.net", open=True)
_META = ".emulator-blocks"


def url(account: str, container: str, name: str) -> str:
    """Return where a blob is read and written, signed as far as a client can see."""
    return f"https://{account}.blob.core.windows.net/{container}/{quote(name)}?sv=2019-02-02&sr=b&sig=emulated"


def _account(request: Request) -> str:
    return request.host.partition(".")[0]


@routes.on("PUT", "/{container}")
def create_container(world: World, request: Request, container: str) -> Response:
    return Response(201)


@routes.on("GET", "/{container}")
def list_blobs(world: World, request: Request, container: str) -> Response:
    if request.query.get("comp") != "list":
        return Response(200, headers={"Last-Modified": email.utils.formatdate(usegmt=True), "ETag": '"0x1"'})
    base = world.blob(_account(request), container, "")
    prefix = request.query.get("prefix", "")
    names = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    items, prefixes = [], []
    delimiter = request.query.get("delimiter", "")
    for name in (name for name in names if name.startswith(prefix) and _META not in name):
        rest = name.removeprefix(prefix)
        if delimiter and delimiter in rest:
            prefixes.append(prefix + rest.split(delimiter)[0] + delimiter)
        else:
            items.append(_item(base / name, name))
    folders = "".join(f"<BlobPrefix><Name>{escape(p)}</Name></BlobPrefix>" for p in dict.fromkeys(prefixes))
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<EnumerationResults ContainerName="{container}"><Prefix>{escape(prefix)}</Prefix>'
        f"<Blobs>{folders}{''.join(items)}</Blobs><NextMarker /></EnumerationResults>"
    )
    return Response(200, body.encode(), {"Content-Type": "application/xml"})


def _item(path: Path, name: str) -> str:
    headers = _headers(path)
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Creation-Time>{headers['Last-Modified']}</Creation-Time>"
        f"<Last-Modified>{headers['Last-Modified']}</Last-Modified><Etag>{headers['ETag']}</Etag>"
        f"<Content-Length>{path.stat().st_size}</Content-Length>"
        f"<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )


@routes.on("PUT", "/(?P<container>[^/]+)/(?P<name>.+)")
def put_blob(world: World, request: Request, container: str, name: str) -> Response:
    path = world.blob(_account(request), container, unquote(name))
    if request.query.get("comp") == "block":
        _write(_block(path, request.query["blockid"]), request.body)
        return Response(201)
    if request.query.get("comp") == "blocklist":
        return _join(path, request.body.decode())
    if request.query.get("comp") in ("metadata", "properties"):
        return Response(200, headers=_headers(path))
    if request.query.get("comp") == "appendblock":
        _write(path, (path.read_bytes() if path.exists() else b"") + request.body)
    else:
        _write(path, request.body)
    return Response(201, headers=_headers(path))


def _block(path: Path, block: str) -> Path:
    return path.parent / f"{path.name}{_META}" / hashlib.sha256(block.encode()).hexdigest()


def _join(path: Path, block_list: str) -> Response:
    names = re.findall(r"<(?:Latest|Uncommitted|Committed)>([^<]+)<", block_list)
    _write(path, b"".join(_block(path, block).read_bytes() for block in names))
    shutil.rmtree(path.parent / f"{path.name}{_META}", ignore_errors=True)
    return Response(201, headers=_headers(path))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@routes.on("HEAD", "/(?P<container>[^/]+)/(?P<name>.+)")
def head_blob(world: World, request: Request, container: str, name: str) -> Response:
    path = world.blob(_account(request), container, unquote(name))
    if not path.is_file():
        return Response(404, headers={"x-ms-error-code": "BlobNotFound"})
    return Response(200, headers=_headers(path) | {"Content-Length": str(path.stat().st_size)})


@routes.on("GET", "/(?P<container>[^/]+)/(?P<name>.+)")
def get_blob(world: World, request: Request, container: str, name: str) -> Response:
    path = world.blob(_account(request), container, unquote(name))
    if not path.is_file():
        return _refused(404, "BlobNotFound")
    content = path.read_bytes()
    wanted = request.headers.get("x-ms-range") or request.headers.get("range")
    if not wanted:
        return Response(200, content, _headers(path))
    if not content:
        # No range fits into nothing; clients know this answer and ask for the whole.
        return _refused(416, "InvalidRange")
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
    headers = _headers(path) | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Response(206, content[slice(start, end + 1)], headers)


def _refused(status: int, code: str) -> Response:
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Response(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


@routes.on("DELETE", "/(?P<container>[^/]+)/(?P<name>.+)")
def delete_blob(world: World, request: Request, container: str, name: str) -> Response:
    world.blob(_account(request), container, unquote(name)).unlink(missing_ok=True)
    return Response(202)


def _headers(path: Path) -> dict[str, str]:
    stamp = path.stat().st_mtime if path.exists() else None
    return {
        "Last-Modified": email.utils.formatdate(stamp, usegmt=True),
        "ETag": f'"{hex(int((stamp or 0) * 1e6))}"',
        "x-ms-blob-type": "BlockBlob",
        "x-ms-request-id": "emulated",
        "x-ms-version": "2019-02-02",
        "x-ms-server-encrypted": "true",
        "Accept-Ranges": "bytes",
    }


def sha256(world: World, address: str) -> str:
    """Return the hash of the blob at ``address``."""
    host, _, rest = address.removeprefix("https://").partition("?")[0].partition("/")
    container, _, name = rest.partition("/")
    return hashlib.sha256(world.blob(host.partition(".")[0], container, unquote(name)).read_bytes()).hexdigest()
