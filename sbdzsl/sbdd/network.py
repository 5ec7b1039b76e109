"""The networks to choose from, by the name that settings carry."""

from __future__ import annotations

from sbdzsl.config import DetectorSettings
from sbdzsl.sbdd.lite import SegDecLite
from sbdzsl.sbdd.reference import SegDecReference
from sbdzsl.sbdd.segdec import SegDec

NETWORKS: dict[str, type[SegDecLite] | type[SegDecReference]] = {"lite": SegDecLite, "reference": SegDecReference}


def build_network(settings: DetectorSettings, *, folded: bool = False) -> SegDec:
    """A new network with random weights: the one that `settings.network` names, at `settings.width`."""
    return NETWORKS[settings.network](settings.width, folded=folded)
