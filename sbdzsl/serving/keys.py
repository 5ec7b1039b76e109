"""API keys: a file of hashes, what each key may do, and who is asking.

A key is `sbdzsl_<id>_<secret>`. The file keeps the SHA-256 of it: the secret has 256 random bits, so a plain hash is as
good as a slow one. A name may have two live keys, so that one can be replaced without a pause; a third is refused. The
file is read again when it changes: a revoked key stops to work at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from sbdzsl import lake
from sbdzsl.errors import ConfigError, ServiceError

#: infer: send images and see what came of them; review: also judge verdicts and alarms; admin: also change the service.
Scope = Literal["infer", "review", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

MAX_LIVE = 2


def scopes(words: Sequence[str]) -> tuple[Scope, ...]:
    """Scopes by their names. Raises `ConfigError` for others."""
    for word in words:
        if word not in SCOPES:
            raise ConfigError("bad-config", f"found scope {word!r}, expected {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in words)


@dataclass(frozen=True, slots=True)
class Key:
    """One key as the file keeps it. `name` is whose it is, and stands as the author beside what is done with it."""

    id: str
    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_live(self) -> bool:
        """Whether it opens anything now."""
        expired = self.expires_at is not None and self.expires_at <= datetime.now(timezone.utc)
        return not expired and self.revoked_at is None

    def require(self, scope: Scope) -> None:
        """Raise `ServiceError` "missing-scope" where the key does not allow it."""
        if scope not in self.scopes:
            raise ServiceError("missing-scope", f"key {self.id} has the scopes {self.scopes}, this takes {scope!r}")


#: Who is asking where no key is: only this machine can connect then.
LOCAL = Key("local", "local", "", SCOPES, datetime.fromtimestamp(0, timezone.utc))

_KEYS = TypeAdapter(list[Key])


class KeyFile:
    """The keys of a service, in a file on a local disk."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._read_at: tuple[int, int] | None = None
        self._keys: list[Key] = []

    def read(self) -> list[Key]:
        """All keys, as the file has them now. Raises `ConfigError` for a file that is no list of keys."""
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_size) != self._read_at:
                self._keys = _KEYS.validate_json(self._path.read_bytes())
                self._read_at = (status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise ConfigError("bad-config", f"{self._path} cannot be read as a file of keys: {error}") from None
        return self._keys

    def find(self, secret: str | None) -> Key:
        """Whose key this is. Raises `ServiceError` "unauthorised"; it never says which part was wrong."""
        found = hashlib.sha256((secret or "").encode("utf-8", "surrogatepass")).hexdigest()
        matching = [key for key in self.read() if hmac.compare_digest(key.sha256, found)]
        if not secret or not matching or not matching[0].is_live():
            raise ServiceError("unauthorised", "a live API key is needed: send it as `Authorization: Bearer KEY`")
        return matching[0]

    def create(self, name: str, scopes: Sequence[Scope], days: float | None = None) -> str:
        """Make a key and return it: the only time that it is seen. Raises `ConfigError` at the third live one."""
        keys = self.read()
        if sum(key.name == name and key.is_live() for key in keys) >= MAX_LIVE:
            raise ConfigError("bad-config", f"{name!r} has {MAX_LIVE} live keys; revoke one of them first")
        number, now = secrets.token_hex(4), datetime.now(timezone.utc)
        secret = f"sbdzsl_{number}_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(secret.encode()).hexdigest()
        expires = None if days is None else now + timedelta(days=days)
        self._write([*keys, Key(number, name, digest, tuple(scopes), now, expires)])
        return secret

    def revoke(self, number: str) -> Key:
        """Let a key open nothing any more. Raises `ConfigError` for one that the file does not hold."""
        keys = {key.id: key for key in self.read()}
        if number not in keys:
            raise ConfigError("bad-config", f"{self._path} has no key {number!r}; it has {', '.join(keys) or 'none'}")
        keys[number] = replace(keys[number], revoked_at=datetime.now(timezone.utc))
        self._write(list(keys.values()))
        return keys[number]

    def _write(self, keys: list[Key]) -> None:
        lake.write_bytes(str(self._path), json.dumps(_KEYS.dump_python(keys, mode="json"), indent=2).encode())


#: Where a browser keeps the key of the page: scripts cannot read it, other sites cannot send it.
COOKIE = "sbdzsl_key"


class Door:
    """Who may come in: makes the dependencies that routes ask. Without a key file everyone who can connect is LOCAL."""

    def __init__(self, keys: KeyFile | None) -> None:
        self._keys = keys

    def find(self, request: Request) -> Key:
        """Whose request this is. Raises `ServiceError` "unauthorised"."""
        if self._keys is None:
            return LOCAL
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        return self._keys.find(secret.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE))

    def owner(self, secret: str) -> Key:
        """Whose key it is. Raises `ServiceError` "unauthorised"."""
        return LOCAL if self._keys is None else self._keys.find(secret)

    def with_scope(self, scope: Scope) -> Callable[[Request], Awaitable[Key]]:
        """A dependency: whose request this is, if that key has the scope."""

        async def find(request: Request) -> Key:
            who = self.find(request)
            who.require(scope)
            return who

        return find
