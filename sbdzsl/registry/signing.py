"""Signatures of bundles by a key of one's own: OpenSSF model signing, without any service or network.

A signature covers the sha256 of every file of a bundle, its card included; any tool of that standard can check it
against the bundle's folder. Keys are elliptic-curve keys in PEM files, as `openssl` makes them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.errors import ConfigError, LakeError, RegistryError
from sbdzsl.registry.store import Registry

_MAKE_KEYS = (
    "make a pair by `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` and "
    "`openssl ec -in key.pem -pubout -out key.pub`"
)


def sign(registry: Registry, name: str, key: Path) -> str:
    """Sign a bundle of a registry and return its digest; a signature that was there before is replaced.

    `key` is a private key in PEM without a password. Raises `ConfigError`: "missing-extra", or "bad-config" for a file
    that is no such key; as `Registry.resolve`; `BundleError` where the bundle is damaged.
    """
    signing, _ = _model_signing()
    with _key_errors(key, "a private EC key without a password"):
        signer = signing.Config().use_elliptic_key_signer(private_key=key)
    digest = registry.resolve(name).digest
    with _copy(registry, digest) as (folder, signature):
        signer.sign(folder, signature)
        lake.write_bytes(registry.signature_url(digest), signature.read_bytes())
    return digest


def check(registry: Registry, name: str, public_key: Path) -> str:
    """The digest of a bundle of a registry whose signature is by this key, and holds for what lies there now.

    Raises `RegistryError` "unsigned" or "bad-signature", and as `sign`.
    """
    _, verifying = _model_signing()
    digest = registry.resolve(name).digest
    with _key_errors(public_key, "a public EC key"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        stored = lake.read_bytes(registry.signature_url(digest))
    except LakeError as error:
        if error.code != "not-found":
            raise
        raise RegistryError(
            "unsigned", f"bundle {digest} has no signature in {registry.url}; `sbdzsl registry sign` makes one"
        ) from None
    from cryptography.exceptions import InvalidSignature  # comes with the extra

    with _copy(registry, digest) as (folder, signature):
        signature.write_bytes(stored)
        try:
            verifier.verify(folder, signature)
        except (ValueError, LookupError, TypeError, InvalidSignature) as error:
            raise RegistryError(
                "bad-signature",
                f"bundle {digest}: the signature is not by this key, or not of these files: "
                f"{error or type(error).__name__}; do not use the bundle before you know why",
            ) from None
    return digest


@contextlib.contextmanager
def _copy(registry: Registry, digest: str) -> Iterator[tuple[Path, Path]]:
    """A local folder with the bundle's files and nothing else, and a place for a signature beside it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / digest
        bundles.copy(registry.bundle_url(digest), str(folder))
        yield folder, Path(place) / "signature"


@contextlib.contextmanager
def _key_errors(key: Path, expected: str) -> Iterator[None]:
    try:
        yield
    # The library asks a key of another kind for its curve.
    except (OSError, ValueError, TypeError, AttributeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("bad-config", f"{key} is not {expected}: {said}; {_MAKE_KEYS}") from None


def _model_signing() -> tuple[ModuleType, ModuleType]:
    try:
        from model_signing import signing, verifying
    except ImportError:
        raise ConfigError("missing-extra", "signatures need model-signing: pip install 'sbdzsl[signing]'") from None
    return signing, verifying
