"""Bodies of requests, read within limits of bytes and time, before anything in them is looked at."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from sbdzsl.errors import ImageError, ServiceError
from sbdzsl.serving.settings import ServeSettings

#: What a raw body may call itself; what it is, is found from its first bytes.
RAW_TYPES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Upload:
    """One image of a request; `name` is the file name that came with it, or ""."""

    content: bytes
    name: str = ""


async def read_body(request: Request, settings: ServeSettings) -> bytes:
    """The whole body. Raises `ImageError` "too-large", `ServiceError` "deadline-exceeded" or "bad-request"."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > settings.max_bytes:
        raise _too_large(int(declared), settings.max_bytes)
    try:
        return await asyncio.wait_for(_collect(request, settings.max_bytes), settings.upload_timeout_s)
    except asyncio.TimeoutError:
        raise ServiceError(
            "deadline-exceeded", f"the body had not arrived after {settings.upload_timeout_s:g} s; send it again"
        ) from None
    except ClientDisconnect:
        raise ServiceError("bad-request", "the connection ended before the body did") from None


async def read_uploads(request: Request, settings: ServeSettings) -> tuple[list[Upload], bool]:
    """The images of a request, and whether they came as a form. Raises as `read_body`, and for other content types."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, settings), True
    if kind not in RAW_TYPES:
        raise ImageError(
            "unsupported-format",
            f"found content type {kind!r}, expected the bytes of an image as {', '.join(RAW_TYPES)}, or several of "
            "them as multipart/form-data",
        )
    return [Upload(await read_body(request, settings))], False


async def _form(request: Request, settings: ServeSettings) -> list[Upload]:
    body = await read_body(request, settings)

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, replay).form(max_files=settings.max_images, max_fields=0)
    except HTTPException as error:
        raise ServiceError("bad-request", f"the form cannot be read: {error.detail}") from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    try:
        if not files:
            raise ServiceError("bad-request", "the form holds no file; expected one part with a file name an image")
        return [Upload(await file.read(), file.filename or "") for file in files]
    finally:
        await form.close()


async def _collect(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(size, max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(size: int, max_bytes: int) -> ImageError:
    return ImageError("too-large", f"the body has {size} bytes or more, the limit is {max_bytes}")
