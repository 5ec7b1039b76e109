"""The operator page itself: plain files, read once, served with strict headers. Nothing comes from another host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

#: Scripts and styles from here alone, none inline; nobody may show the page inside his own.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser asks each time, and gets 304 until the service is another one.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    kind: str
    tag: str

    def response(self, known: str | None) -> Response:
        headers = _HEADERS | {"ETag": self.tag}
        if known == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.kind, headers=headers)


def page_routes() -> APIRouter:
    """`/` and the files that it asks for."""
    assets = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return assets["index.html"].response(if_none_match)

    @router.get("/page/{name}")
    async def asset(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        if name not in assets:
            raise HTTPException(404, f"the page has no file {name!r}")
        return assets[name].response(if_none_match)

    return router


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    return _Asset(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
