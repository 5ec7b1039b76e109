"""The one error hierarchy, with stable codes.

Every failure that a user can cause or meet is an `SbdzslError`. Its `code` (kebab-case) is a public contract: it
stands in verdict rows, in logs and in problem documents. The message says what was found, what was expected and what
to do. `ValueError` and `assert` are left for mistakes of our own code.
"""

from __future__ import annotations

from typing import ClassVar


class SbdzslError(Exception):
    """Root of all errors that sbdzsl raises on purpose.

    `CODES` maps each stable code of a class to its HTTP status; `exit_code` is what a command ends with:
    1 the work failed, 2 the call is wrong, 3 stopped where the user wanted it to.
    """

    CODES: ClassVar[dict[str, int]] = {}
    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str) -> None:
        if code not in self.CODES:
            raise ValueError(f"{type(self).__name__} has no code {code!r}; it has {sorted(self.CODES)}")
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        """HTTP status that a service answers with for this error."""
        return self.CODES[self.code]

    def __reduce__(self) -> tuple[type[SbdzslError], tuple[str, str]]:
        # The default would call the class with the message alone, and errors cross process borders.
        return type(self), (self.code, self.message)


class ImageError(SbdzslError):
    """The bytes of one image cannot be judged. In an audit this becomes a row, never an exception."""

    CODES: ClassVar[dict[str, int]] = {
        "empty": 400,
        "unreadable": 400,
        "truncated": 400,
        "unsupported-format": 415,
        "too-large": 413,
        "too-small": 422,
        "depth-mismatch": 422,
    }


class LakeError(SbdzslError):
    """A store, a folder or one object in it cannot be listed, read or written."""

    CODES: ClassVar[dict[str, int]] = {
        "not-found": 404,
        "forbidden": 403,
        "no-images": 404,
        "unreachable": 503,
        "unsupported-store": 400,
        "already-exists": 409,
        "disk-full": 507,
    }


class DataError(SbdzslError):
    """A data set, a manifest, a mask or a label is not what it has to be."""

    CODES: ClassVar[dict[str, int]] = {
        "bad-layout": 422,
        "bad-manifest": 422,
        "bad-mask": 422,
        "bad-attributes": 422,
        "too-few-images": 422,
        "bad-images": 422,
    }
    exit_code: ClassVar[int] = 2


class ConfigError(SbdzslError):
    """A setting or an argument is unknown, of the wrong type or out of range."""

    CODES: ClassVar[dict[str, int]] = {"bad-config": 400, "missing-extra": 501}
    exit_code: ClassVar[int] = 2


class BundleError(SbdzslError):
    """A bundle is missing, damaged, of another version, holds what must not be loaded, or has no room for a surface."""

    CODES: ClassVar[dict[str, int]] = {
        "no-bundle": 404,
        "bundle-exists": 409,
        "damaged-bundle": 422,
        "wrong-version": 422,
        "unsafe-file": 422,
        "surface-exists": 409,
        "surface-claimed": 409,
    }


class RegistryError(SbdzslError):
    """A registry of bundles lacks what was named, somebody else was faster, or what it holds cannot be trusted."""

    CODES: ClassVar[dict[str, int]] = {
        "no-version": 404,
        "ambiguous-version": 409,
        "promoted-meanwhile": 409,
        "damaged-registry": 422,
        "unsigned": 422,
        "bad-signature": 422,
    }


class TrainingError(SbdzslError):
    """A training or a sweep cannot go on, such as at a loss that is not finite, or has not trained what it should."""

    CODES: ClassVar[dict[str, int]] = {
        "not-finite": 500,
        "weights-missing": 500,
        "surfaces-failed": 500,
        "workers-failed": 500,
        "trials-failed": 500,
    }


class ExportError(SbdzslError):
    """An exported graph does not say what its net says, or its place is taken."""

    CODES: ClassVar[dict[str, int]] = {"no-parity": 500, "export-exists": 409}


class AuditError(SbdzslError):
    """An audit, or a training on a cluster ("no-resources"), cannot start, cannot go on, or does not reconcile."""

    CODES: ClassVar[dict[str, int]] = {
        "other-audit": 409,
        "no-resources": 503,
        "incomplete": 500,
        "stalled": 500,
        "crashing": 500,
    }


class PipelineError(SbdzslError):
    """A run of the pipeline was begun with other data or settings, or its folder holds what cannot be trusted."""

    CODES: ClassVar[dict[str, int]] = {"other-run": 409, "damaged-run": 422}


class StoppedError(SbdzslError):
    """Work stopped in good order where the user wanted it to: at a limit of time or errors, at a gate."""

    CODES: ClassVar[dict[str, int]] = {"too-many-errors": 422, "out-of-time": 408, "gate-refused": 409}
    exit_code: ClassVar[int] = 3


class ServiceError(SbdzslError):
    """A request to the online service cannot be answered now, or not as it was asked."""

    CODES: ClassVar[dict[str, int]] = {
        "bad-request": 400,
        "unauthorised": 401,
        "missing-scope": 403,
        "unknown-event": 404,
        "unknown-alarm": 404,
        "no-candidate": 404,
        "deadline-exceeded": 408,
        "idempotency-in-flight": 409,
        "idempotency-mismatch": 422,
        "overloaded": 429,
        "bad-answer": 502,
        "not-ready": 503,
        "unreachable": 503,
    }


class AlertError(SbdzslError):
    """An alert cannot be stored or delivered. `sink-unreachable` and `alert-refused` are tried again by themselves.

    `retry_after_s`: the sink asked not to be tried again before so many seconds; None where it did not.
    """

    CODES: ClassVar[dict[str, int]] = {
        "outbox-unusable": 507,
        "sink-unreachable": 503,
        "alert-refused": 502,
        "sink-gone": 410,
    }

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s
