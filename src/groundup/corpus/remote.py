"""Remote sources: fetched once into a folder beside the recipe, resumably, with digests; then read like any other.

Addresses are `https://…`, those that fsspec knows (`s3://`, `gs://`, `hf://datasets/…`), and `cc://…` for a path of
Common Crawl. A file named `….paths` lists paths of Common Crawl, one a line.
"""

import contextlib
import hashlib
import http.client
import ipaddress
import socket
import urllib.request
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import orjson

from groundup.corpus.settings import Remote
from groundup.errors import DataError, MissingError
from groundup.files import explaining_write_errors, reading, sha256_of_file, write_json

COMMON_CRAWL = "https://data.commoncrawl.org/"
TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
Opened = tuple[BinaryIO, int, str, int | None]
"""A stream, the byte of the file at which it begins, what tells this version of the file from others, its bytes."""


def is_remote(source: str) -> bool:
    return "://" in source or PurePosixPath(source.removesuffix(".gz")).suffix == ".paths"


def fetch(source: str, beside: Path, settings: Remote) -> Path:
    """The file or folder that an address names, from the cache; what is not there, or not all of it, is fetched.

    Raises:
        DataError: it cannot be fetched, or settings do not allow it. What was fetched is kept for the next time.
        MissingError: the package is not installed that opens such addresses.
    """
    folder = beside / settings.cache / _key(source)
    about = folder.with_name(f"{folder.name}.json")
    if not about.is_file():
        files, licence = _listed(source, beside, settings)
        if not files:
            raise DataError(f"source {source} has no files")
        told = {name: _fetch_file(each, folder / name) for name, each in files.items()}
        write_json(about, {"source": source, "licence": licence, "files": told})
    names = list(orjson.loads(about.read_bytes())["files"])
    return folder / names[0] if len(names) == 1 and names[0] == PurePosixPath(urlsplit(source).path).name else folder


@lru_cache
def licence_of(source: str, file: Path) -> str | None:
    """What a fetched data set says of its licence."""
    key = _key(source)
    folder = next((each for each in file.parents if each.name == key), None)
    return orjson.loads(folder.with_name(f"{key}.json").read_bytes())["licence"] if folder else None


def _key(source: str) -> str:
    name = PurePosixPath(urlsplit(source).path).name[:40] or "files"
    return f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"


Open = Callable[[int, str], Opened]
"""Opens a file from a byte on, if it is still the version of that name, else from its beginning."""


def _listed(source: str, beside: Path, settings: Remote) -> tuple[dict[str, Open], str | None]:
    """Name of each file → what opens it; and the licence of all."""
    if "://" not in source:
        with reading(beside / source) as stream:
            paths = [line.strip() for line in stream.read().decode().splitlines() if line.strip()]
        return {_safe(path): partial(_open_http, f"{COMMON_CRAWL}{path}", settings) for path in paths}, None
    scheme = source.partition("://")[0].lower()
    if scheme not in settings.schemes:
        raise DataError(
            f"source {source}: {scheme}:// is none of corpus.remote.schemes ({', '.join(settings.schemes)})"
        )
    if scheme == "cc":
        source = COMMON_CRAWL + source.removeprefix("cc://")
    if scheme in ("http", "https", "cc"):
        return {_safe(urlsplit(source).path).rpartition("/")[2]: partial(_open_http, source, settings)}, None
    try:
        import fsspec

        system, root = fsspec.url_to_fs(source)
        found = system.glob(root) if "*" in root else system.find(root)
    except (ImportError, ValueError) as error:
        raise MissingError(f"source {source} needs more packages: pip install 'groundup[remote]' ({error})") from None
    except OSError as error:
        raise DataError(f"cannot fetch {source}: {error}") from None
    above = root if system.isdir(root) else root.rpartition("/")[0]
    files: dict[str, Open] = {
        _safe(path.removeprefix(above)): partial(_open_fsspec, system, path) for path in sorted(found)
    }
    return files, _card_licence(source) if scheme == "hf" else None


def _safe(path: str) -> str:
    parts = [part for part in PurePosixPath(unquote(path)).parts if part not in ("/", ".")]
    if ".." in parts or not parts:
        raise DataError(f"cannot fetch {path}: its path should lead to a file within its folder")
    return "/".join(parts)


def _card_licence(source: str) -> str | None:
    import huggingface_hub

    name = "/".join(source.removeprefix("hf://datasets/").split("/")[:2]).partition("@")[0]
    with contextlib.suppress(OSError, ValueError):  # a private set, or one without a card
        card = huggingface_hub.HfApi().dataset_info(name).card_data
        return str(card.license) if card and card.license else None
    return None


def _fetch_file(opening: Open, path: Path) -> Mapping[str, Any]:
    """Fetch what is not there yet of a file, and give its size and digest."""
    begun, version = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.version")
    with explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            there = begun.stat().st_size if begun.exists() and version.exists() else 0
            try:
                stream, at, now, size = opening(there, version.read_text("utf-8") if there else "")
                version.write_text(now, "utf-8")
                with contextlib.closing(stream), open(begun, "r+b" if at else "wb") as sink:
                    sink.seek(at)
                    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
                        sink.write(chunk)
                    if size is not None and sink.tell() != size:
                        raise ConnectionError(f"the connection ended after {sink.tell():,} of {size:,} bytes")
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                    raise
                raise DataError(f"cannot fetch {path.name}: {error}. Run it again: what came is kept") from None
            begun.replace(path)
            version.unlink()
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _open_fsspec(system: Any, path: str, at: int, version: str) -> Opened:
    now = str(system.ukey(path))
    stream = system.open(path, "rb")
    at = at if version == now else 0
    stream.seek(at)
    return stream, at, now, system.size(path)


def _open_http(address: str, settings: Remote, at: int, version: str) -> Opened:
    headers = {"Range": f"bytes={at}-", "If-Range": version} if at and version else {}
    request = urllib.request.Request(address, headers=headers)
    answer = _opener(settings).open(request, timeout=TIMEOUT_SECONDS)
    is_rest = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {at}-")
    if at and answer.status == 206 and not is_rest:
        raise http.client.HTTPException(f"{address} sent another range than was asked for")
    at, length = at if is_rest else 0, answer.headers.get("Content-Length")
    return answer, at, answer.headers.get("ETag", ""), at + int(length) if length else None


def _opener(settings: Remote) -> urllib.request.OpenerDirector:
    """Opens http and https, at public addresses; each connection is looked at, also after a redirect. No proxy is used:
    it would stand between."""

    def connect(*arguments: Any, **more: Any) -> socket.socket:
        connection = socket.create_connection(*arguments, **more)
        address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not (address.is_global or settings.private_addresses):
            connection.close()
            raise http.client.HTTPException(
                f"{address} is no public address (corpus.remote.private_addresses allows it)"
            )
        return connection

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(partial(_connection, http.client.HTTPConnection), request)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(partial(_connection, http.client.HTTPSConnection), request)

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request: Any, stream: Any, code: int, message: str, headers: Any, url: str) -> Any:
            if urlsplit(url).scheme not in settings.schemes:
                raise http.client.HTTPException(
                    f"{request.full_url} leads to {url}, which corpus.remote.schemes excludes"
                )
            return super().redirect_request(request, stream, code, message, headers, url)

    def _connection(kind: type[http.client.HTTPConnection], *arguments: Any, **more: Any) -> http.client.HTTPConnection:
        connection = kind(*arguments, **more)
        connection._create_connection = connect  # type: ignore[attr-defined]
        return connection

    opener = urllib.request.OpenerDirector()
    for handler in (
        Plain(),
        Secure(),
        Redirect(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
