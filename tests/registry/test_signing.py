"""Signatures by a key of one's own, checked on what lies in the registry now."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sbdzsl import lake
from sbdzsl.errors import ConfigError, RegistryError
from sbdzsl.registry import Registry, signing


def write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_pair(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()))


def refused(registry: Registry, digest: str, public_key: Path) -> str:
    with pytest.raises(RegistryError) as caught:
        signing.check(registry, digest, public_key)
    return caught.value.code


def test_signed_and_checked(registry: Registry, draw: Callable[[int], str], key: Path) -> None:
    digest = registry.push(draw(1))
    assert refused(registry, digest, key.with_suffix(".pub")) == "unsigned"
    assert signing.sign(registry, digest[:8], key) == digest
    assert signing.check(registry, digest[:8], key.with_suffix(".pub")) == digest
    assert registry.versions()[0].is_signed


def test_another_key_another_bundle_a_broken_signature(
    local: Registry, draw: Callable[[int], str], key: Path, tmp_path: Path
) -> None:
    digest, other = local.push(draw(1)), local.push(draw(2))
    signing.sign(local, digest, key)
    public = key.with_suffix(".pub")
    strange = write_pair(tmp_path, "strange", ec.generate_private_key(ec.SECP384R1()))
    assert refused(local, digest, strange.with_suffix(".pub")) == "bad-signature"
    shutil.copy(local.signature_url(digest), local.signature_url(other))
    assert refused(local, other, public) == "bad-signature"
    for content in (b"{}", b"[]", b"no json", lake.read_bytes(local.signature_url(digest))[:-9]):
        Path(local.signature_url(digest)).write_bytes(content)
        assert refused(local, digest, public) == "bad-signature"
    signing.sign(local, digest, strange)
    assert refused(local, digest, public) == "bad-signature"
    assert signing.check(local, digest, strange.with_suffix(".pub")) == digest


def test_a_whole_bundle_made_by_somebody_else_under_the_signed_name(
    local: Registry, draw: Callable[[int], str], key: Path
) -> None:
    """Whoever may write to the store can make cards and digests fit; without the key no signature does."""
    digest = local.push(draw(1))
    signing.sign(local, digest, key)
    shutil.rmtree(local.bundle_url(digest))
    shutil.copytree(draw(2), local.bundle_url(digest))
    assert refused(local, digest, key.with_suffix(".pub")) == "bad-signature"


def test_files_that_are_no_key(local: Registry, draw: Callable[[int], str], key: Path, tmp_path: Path) -> None:
    digest = local.push(draw(1))
    edwards = write_pair(tmp_path, "edwards", ed25519.Ed25519PrivateKey.generate())
    for path in (key.with_suffix(".pub"), edwards, tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="is not a private EC key"):
            signing.sign(local, digest, path)
    signing.sign(local, digest, key)
    for path in (key, edwards.with_suffix(".pub"), tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is not a public EC key"):
            signing.check(local, digest, path)


def test_the_standards_own_tool_agrees(local: Registry, draw: Callable[[int], str], key: Path) -> None:
    digest = local.push(draw(1))
    signing.sign(local, digest, key)
    words = [sys.executable, "-m", "model_signing", "verify", "key", local.bundle_url(digest)]
    words += ["--signature", local.signature_url(digest), "--public_key", str(key.with_suffix(".pub"))]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    (Path(local.bundle_url(digest)) / "router.safetensors").write_bytes(b"other")
    assert subprocess.run(words, check=False, capture_output=True).returncode != 0


def test_without_the_extra_it_says_so(
    local: Registry, draw: Callable[[int], str], key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"sbdzsl\[signing\]"):
        signing.sign(local, local.push(draw(1)), key)
