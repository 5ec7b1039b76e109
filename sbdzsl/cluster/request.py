"""What is asked of an audit, and the same checked and loaded. No Ray in here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sbdzsl import bundle as bundles
from sbdzsl import lake, registry
from sbdzsl.cluster.plan import Identity
from sbdzsl.config import AuditSettings, Promise, ThresholdRule
from sbdzsl.errors import ConfigError
from sbdzsl.inspector import Inspector
from sbdzsl.runtime import Runtime


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """Which images are to be judged, by what, and where the verdicts go.

    Of `lake_url` (folder, prefix, TAR, manifest.json of an S3 Inventory) and `manifest_uri` (a file or a folder of
    them) exactly one is given. `policy` and `promise` None: the bundle's own. With `only_new` what came since the last
    run is judged, too; with `delta_url` each run is one commit to that Delta table.
    """

    bundle_url: str
    out: str
    lake_url: str | None = None
    manifest_uri: str | None = None
    settings: AuditSettings = field(default_factory=AuditSettings)
    policy: ThresholdRule | None = None
    runtime: Runtime = "torch"
    promise: Promise | None = None
    only_new: bool = False
    delta_url: str | None = None

    @property
    def source(self) -> str:
        """Absolute URL of the lake or the manifest."""
        return lake.absolute_url(self.lake_url or self.manifest_uri or "")


@dataclass(frozen=True, slots=True)
class Audit:
    """A request that can be carried out: all that can be checked before the lake is read has been."""

    request: AuditRequest
    out: str
    identity: Identity
    inspector: Inspector

    @property
    def settings(self) -> AuditSettings:
        """How it is run."""
        return self.request.settings

    @property
    def defect_budget(self) -> float | None:
        """The false-alarm rate that the rule in force promises; None where it promises none, or rules differ."""
        own = self.inspector.bundle.settings.detector
        rule = self.request.policy or own.threshold_policy
        if rule.policy != "false-alarm-rate" or self.settings.surface_policies:
            return None
        return rule.false_alarm_rate or own.false_alarm_rate


def prepare(request: AuditRequest) -> Audit:
    """Check a request and load its bundle. Raises `ConfigError`, `BundleError`, `RegistryError`, `DataError`,
    `LakeError`."""
    settings = request.settings
    if (request.lake_url is None) == (request.manifest_uri is None):
        raise ConfigError("bad-config", "give an audit either --lake or --manifest")
    if request.manifest_uri is not None and (settings.include or settings.exclude):
        raise ConfigError("bad-config", "include and exclude choose what is listed of --lake; a manifest is a list")
    request = replace(request, bundle_url=registry.locate(request.bundle_url))  # the same one for every actor
    bundle = bundles.load(lake.absolute_url(request.bundle_url), promise=request.promise)
    inspector = Inspector(
        bundle,
        request.policy,
        max_memory_mb=settings.max_memory_mb,
        runtime=request.runtime,
        surface_policies=settings.surface_policies,
    )
    identity = Identity(
        source=request.source,
        bundle_digest=bundle.digest,
        policy=None if request.policy is None else str(request.policy),
        surface_policies={surface: str(rule) for surface, rule in sorted(settings.surface_policies.items())},
        runtime=request.runtime,
        promise=bundle.router.promise,
    )
    return Audit(request, lake.absolute_url(request.out), identity, inspector)
