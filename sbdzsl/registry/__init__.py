"""Registry: bundles under their digests, and names such as `production` for them, on any store, without a server.

    bundles/<digest>/                 a bundle, copied in and checked, its card last
    aliases/<alias>/<number>.json     who pointed the alias to which bundle, when and why; written once
    signatures/<digest>.sig           OpenSSF model signature of the bundle's folder, where it was signed
    claims/<digest>/                  somebody is about to use the bundle: `gc` leaves it alone for a day

An alias points to the bundle of its record with the highest number. To promote and to roll back is to create the next
record: of two who try at once the store lets one win, and the other is told.

Wherever a bundle is asked for, `REGISTRY@production` or `REGISTRY@<digest>` names one: see `locate`.

    records     the records of one alias
    store       the registry
    gate        whether a bundle is good enough to be promoted
    signing     signatures by a key of one's own
"""

from sbdzsl.errors import RegistryError
from sbdzsl.registry.records import Record, is_alias, looks_like_digest
from sbdzsl.registry.store import Registry, Resolved, Version

__all__ = ["Record", "Registry", "Resolved", "Version", "locate", "split"]


def split(url: str) -> tuple[str, str] | None:
    """Registry and name of a URL of the form `REGISTRY@NAME`; None for any other, such as a plain folder.

    The name is an alias or the first digits of a digest. A slash at the end makes it a folder that is called so.
    """
    registry, _, name = url.rpartition("@")
    return (registry, name) if registry.strip("/") and (is_alias(name) or looks_like_digest(name)) else None


def locate(url: str) -> str:
    """Where the bundle lies that is meant: for `REGISTRY@NAME` its folder in there, as of now; any other URL as it is.

    The answer names a digest, so that whoever keeps it stays with that bundle when the alias moves. Raises
    `RegistryError`, `LakeError`.
    """
    named = split(url)
    if named is None:
        return url
    try:
        return Registry(named[0]).resolve(named[1]).url
    except RegistryError as error:
        if error.code != "no-version":
            raise
        hint = f"if the folder {url} itself is meant, put a slash at its end"
        raise RegistryError("no-version", f"{error.message}; {hint}") from None
