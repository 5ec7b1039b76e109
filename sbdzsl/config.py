"""Typed, closed, frozen settings and the one loader.

An unknown key, a wrong type or a value out of range is a `ConfigError` that reads `file: key: reason`.
Nothing here touches the disk or the environment on import.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic_core import ErrorDetails

from sbdzsl.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings: no unknown keys, no assignment after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Policy = Literal["false-alarm-rate", "max-f1", "zero-misses", "cost", "fixed"]

POLICY_FORMS = "false-alarm-rate[:RATE], max-f1, zero-misses, cost:PRICE@SHARE or fixed:SCORE"


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """A threshold policy with its numbers; written and read as one word, see `POLICY_FORMS`.

    `false_alarm_rate` (above 0, below 0.5): good images that may be called defective; None: the settings' own.
    `miss_cost`: what a missed defect costs, in false alarms; `defect_share` (0 to 1, exclusive): the share of images
    that are expected to be defective where the detector works. `value`: the threshold itself, a raw score.
    """

    policy: Policy
    false_alarm_rate: float | None = None
    miss_cost: float | None = None
    defect_share: float | None = None
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """Read a rule from its word. Raises `ConfigError` that says which forms there are."""
        try:
            return _read_rule(text)
        except ValueError as error:
            raise ConfigError("bad-config", str(error)) from None

    def __str__(self) -> str:
        given = "@".join(
            repr(number).removesuffix(".0")
            for number in (self.false_alarm_rate, self.miss_cost, self.defect_share, self.value)
            if number is not None
        )
        return f"{self.policy}:{given}" if given else self.policy


#: Policies that take numbers, and the fields and exclusive bounds of those.
_RULE_NUMBERS: dict[str, dict[str, tuple[float, float]]] = {
    "false-alarm-rate": {"false_alarm_rate": (0, 0.5)},
    "cost": {"miss_cost": (0, math.inf), "defect_share": (0, 1)},
    "fixed": {"value": (-math.inf, math.inf)},
}


def _read_rule(given: Any) -> ThresholdRule:
    """A rule as it is or from its word; `ValueError` for others, which pydantic reports with file and key."""
    if isinstance(given, ThresholdRule):
        return given
    name, colon, rest = str(given).partition(":")
    fields = _RULE_NUMBERS.get(name, {})
    words = rest.split("@") if colon else []
    optional = name == "false-alarm-rate" and not colon
    if name not in get_args(Policy) or (len(words) != len(fields) and not optional):
        raise ValueError(f"found threshold policy {given!r}, expected {POLICY_FORMS}")
    numbers: dict[str, float] = {}
    for word, (field, (low, high)) in zip(words, fields.items(), strict=False):
        try:
            numbers[field] = float(word)
        except ValueError:
            raise ValueError(f"found {word!r} in threshold policy {given!r}, expected a number") from None
        if not low < numbers[field] < high:
            raise ValueError(f"threshold policy {given!r}: {field} has to be above {low:g} and below {high:g}")
    return ThresholdRule(name, **numbers)  # type: ignore[arg-type]


#: A rule as a setting: its word in YAML and in a bundle's card.
RuleSetting = Annotated[ThresholdRule, BeforeValidator(_read_rule), PlainSerializer(str, return_type=str)]


class ImageSettings(Settings):
    """Limits checked before an image is decoded, and the depth policy for images deeper than 8 bits."""

    max_bytes: int = Field(256 * 2**20, gt=0, description="largest file, in bytes")
    max_pixels: int = Field(120_000_000, gt=0, description="largest width times height")
    max_side_px: int = Field(60_000, gt=0, description="largest width or height")
    min_side_px: int = Field(16, gt=0, description="smallest width or height that can be judged")
    bit_depth: int | None = Field(
        None, ge=8, le=16, description="significant bits of 16-bit files; the manifest's own wins"
    )
    white_percentile: float | None = Field(
        None, gt=50, le=100, description="when no depth is declared: this percentile of the image is white"
    )


ReadingLoss = Literal["mse", "l1"]
Promise = Literal["plain", "envelope"]


class EnvelopeSettings(Settings):
    """The changes of conditions within which the `envelope` promise holds."""

    gain: float = Field(1.35, ge=1, le=4, description="light times or divided by up to this")
    gamma: float = Field(1.35, ge=1, le=4, description="gamma times or divided by up to this")
    offset: float = Field(0.08, ge=0, le=0.5, description="black level up or down by up to this share of white")
    blur_px: float = Field(1.1, ge=0, le=10, description="blur of up to this standard deviation, in pixels")
    noise: float = Field(0.0275, ge=0, le=0.5, description="noise of up to this standard deviation, share of white")
    zoom: float = Field(1.1, ge=1, le=2, description="scale times or divided by up to this")
    turn_degrees: float = Field(10.0, ge=0, le=180, description="turned either way by up to this")
    flips: bool = Field(True, description="left-right and top-bottom, too")


class RouterSettings(Settings):
    """SBAD: features, class embedding, decision."""

    backbone: str | None = Field(
        None, description="efficientnet-lite0 (none), a folder with safetensors or an ONNX graph, or a Hugging Face id"
    )
    stages: tuple[str, ...] = Field((), description="which stages of it feed the embedding; none: its own choice")
    crop_px: int = Field(256, ge=64, description="side of a crop, in source pixels: scale is information")
    max_crops: int = Field(2, ge=1, le=16, description="crops an image contributes at most")
    score: Literal["whitened-nn", "paper"] = Field("whitened-nn", description="what gates unseen surfaces")
    false_alarm_rate: float = Field(0.02, gt=0, lt=0.5, description="budget: seen images that may be called unseen")
    promise: Promise = Field(
        "plain", description="false alarms are promised for conditions as they were, or anywhere in the envelope"
    )
    calibration: Literal["cross-fitted", "held-out"] = Field(
        "cross-fitted",
        description="what sets the threshold: all images, each judged by a gate without its fold; or validation images",
    )
    pca_dims: int = Field(64, ge=8)
    shrinkage: float = Field(0.1, ge=0, le=1, description="of the within-surface covariance towards the identity")
    own_prior: float = Field(
        3.0, gt=0, description="images that the mean covariance weighs against a surface's own; many: all have the same"
    )
    envelope: EnvelopeSettings = EnvelopeSettings()
    copies: int = Field(4, ge=0, le=64, description="changed copies of a training image; 0: no envelope promise")
    class_embedding: Literal["learned", "real"] = Field(
        "learned", description="what is read off features: learned by the CE-VAE, or the attribute table as it is"
    )
    generator: Literal["vaegan", "tf-vaegan"] = Field("vaegan", description="the network that learns to read it")
    reading_loss: ReadingLoss = Field("mse", description="of the reading, and its distance to a class embedding")
    ce_vae_steps: int = Field(1000, ge=1)
    vaegan_steps: int = Field(300, ge=0, description="generator steps; each takes critic_steps critic steps")
    critic_steps: int = Field(5, ge=1)
    hidden: int = Field(256, ge=16, description="width of the hidden layers of CE-VAE, VAEGAN and TF-VAEGAN")

    @property
    def is_cross_fitted(self) -> bool:
        """Whether a gate learns validation images, too. Under the paper's rule none does: it takes too long to fit."""
        return self.calibration == "cross-fitted" and self.score != "paper"


class DetectorSettings(Settings):
    """SBDD: network, training and decision of one surface's detector."""

    network: Literal["lite", "reference"] = Field("lite", description="reference: the published one, 84 GMAC")
    width: float = Field(1.0, gt=0, le=4, description="the one dial of the network: all layer widths scale with it")
    start: Literal["pretrained", "random"] = Field("pretrained", description="weights to begin with, if there are any")
    scale: float | None = Field(None, gt=0, le=1, description="images are shrunk by this; none: chosen from their size")
    max_memory_mb: float = Field(
        1024.0, ge=192, description="of judging one image: what takes more whole is encoded in tiles"
    )
    epochs: int = Field(40, ge=1)
    max_minutes: float = Field(5.0, gt=0, description="training stops in good order at this wall time")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without gain; none: never")
    keep: Literal["averaged", "best"] = Field("averaged", description="weights kept: the last mean, or best validated")
    batch_size: int = Field(8, ge=2)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the convolutions in training; auto: bfloat16 where the processor has it"
    )
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="sgd: constant rate, as published")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    sampling: Literal["frequency-of-use", "random"] = Field("frequency-of-use", description="of good images")
    loss_balance: Literal["gradual", "published", "constant"] = Field(
        "gradual", description="map loss to decision loss"
    )
    decision_gradient: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the decision into the trunk, 0 stops it; none: 0.1, or 1 if nothing else guides",
    )
    positive_weight: float = Field(10.0, gt=0, description="weight of defect pixels in the segmentation loss")
    distance_power: float = Field(1.0, ge=0, description="power of the distance transform that weighs defect pixels")
    defect_share_cap: float = Field(
        0.03, gt=0, le=1, description="share of its cells one image's defect weighs at most"
    )
    dice_weight: float = Field(0.2, ge=0, description="of the Dice term beside the cross-entropy of the map")
    weak_weight: float = Field(0.25, ge=0, description="of the map loss of defective images without a mask")
    dilation_px: int = Field(7, ge=1, description="masks are dilated by this in training, in network pixels")
    drawn_defects: float = Field(0.5, ge=0, le=1, description="share of good training images that get a drawn defect")
    feature_noise: float = Field(
        0.0, ge=0, description="noise in places of good images' features, taken for defects; in their deviations"
    )
    augmentation: bool = Field(True, description="flips, small turns and zooms, light")
    false_alarm_rate: float = Field(0.02, gt=0, lt=0.5, description="budget: good images that may be called defective")
    threshold_policy: RuleSetting = Field(ThresholdRule("false-alarm-rate"), description=f"one of {POLICY_FORMS}")


class TrainSettings(Settings):
    """Everything `sbdzsl train --config` accepts."""

    image: ImageSettings = ImageSettings()
    router: RouterSettings = RouterSettings()
    detector: DetectorSettings = DetectorSettings()
    surfaces: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="per surface: keys of `detector` that differ from it"
    )
    attributes: str | None = Field(None, description="URL of an attribute table (CSV) that replaces the embedded one")

    def detector_for(self, surface: str) -> DetectorSettings:
        """Settings of one surface's detector: the common ones with the surface's own laid over them."""
        return parse(
            DetectorSettings, self.detector.model_dump() | self.surfaces.get(surface, {}), f"surfaces.{surface}"
        )


class ClusterSettings(Settings):
    """How a training is spread over a cluster: `sbdzsl train --cluster-config`.

    The bundle does not depend on it, but for `workers_per_surface`: several workers draw and round otherwise than one.
    """

    workers: int | None = Field(None, ge=1, description="none: as many as the cluster holds, a surface each")
    workers_per_surface: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="surfaces that several workers train together, a batch split among them"
    )
    cpus_per_worker: float | None = Field(None, gt=0, description="none: 1; beside a GPU its share of the node's CPUs")
    gpus_per_worker: float | None = Field(None, ge=0, description="none: 1 where the cluster has GPUs")
    max_minutes: float = Field(1440.0, gt=0, description="then each surface stops after its epoch; run again to go on")


class PriceSettings(Settings):
    """What the store and the machines cost: for the estimate of `--dry-run` alone."""

    currency: str = Field("USD")
    get_per_1000: float = Field(0.0, ge=0, description="reading requests")
    put_per_1000: float = Field(0.0, ge=0, description="writing and listing requests")
    read_per_gb: float = Field(0.0, ge=0, description="bytes read, such as retrieval from an infrequent-access class")
    cpu_hour: float = Field(0.0, ge=0, description="one CPU for an hour")


class AuditSettings(Settings):
    """Which images an audit takes, when it stops, and how it is run.

    What is judged, and by which threshold, follows from the first group; verdicts do not depend on the others.
    """

    include: tuple[str, ...] = Field((), description="globs below the lake, of which an image has to match one")
    exclude: tuple[str, ...] = Field((), description="globs below the lake, of which an image may match none")
    sample: float | None = Field(None, gt=0, le=1, description="share of the images, always the same ones")
    limit: int | None = Field(None, ge=1, description="so many images at most")
    newest_first: bool = Field(False, description="by the time of change; needs memory for the whole manifest")
    surface_policies: dict[str, RuleSetting] = Field(
        default_factory=dict, description=f"per surface a threshold policy of its own: {POLICY_FORMS}"
    )

    max_errors: float | None = Field(
        None, ge=0, le=1, description="the audit stops when more than this share of images cannot be judged"
    )
    max_minutes: float | None = Field(None, gt=0, description="no shard is begun after so long; run again to go on")
    stall_timeout_s: float = Field(
        600.0, gt=0, description="no shard finished for so long: the audit stops and names those that are stuck"
    )
    read_timeout_s: float = Field(
        120.0, gt=0, description="images that are not read by then, with nothing else to do, are rows `unreachable`"
    )

    shard_size: int | None = Field(None, ge=1, description="images a shard; none: chosen from the size of the manifest")
    actors: int | None = Field(None, ge=1, description="none: as many as the cluster holds")
    cpus_per_actor: float | None = Field(None, gt=0, description="none: 1; beside a GPU its share of the node's CPUs")
    gpus_per_actor: float | None = Field(None, ge=0, description="none: 1 where the cluster has GPUs and runs torch")
    readers_per_actor: int | None = Field(
        None, ge=1, description="threads that read and decode ahead of the nets; none: 4, from a remote lake 16"
    )
    max_memory_mb: float | None = Field(
        None, ge=192, description="of judging one image; none: as each detector's settings say"
    )
    gallery_size: int = Field(24, ge=0, description="images in the report's gallery, per kind")
    prices: PriceSettings = Field(PriceSettings(), description="for the estimate of --dry-run")


S = TypeVar("S", bound=Settings)

#: Type of a validator's error about a value that no message may repeat.
HIDDEN = "hidden_value"

#: Errors whose value would be a whole group of settings, or what someone wrote under a key that is not there.
_UNSHOWN = frozenset({HIDDEN, "extra_forbidden", "union_tag_invalid", "union_tag_not_found"})


def parse(model: type[S], values: dict[str, Any], source: str) -> S:
    """Build settings from plain values. Raises `ConfigError` that names `source`, key and reason."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        reasons = "\n".join(
            f"{source}: {'.'.join(str(part) for part in e['loc'])}: {e['msg']}{_found(e)}" for e in error.errors()
        )
        known = ", ".join(model.model_fields)
        raise ConfigError("bad-config", f"{reasons}\nknown keys: {known}") from None


def _found(error: ErrorDetails) -> str:
    """What was found, unless it may be a secret or holds other settings that may be."""
    shown = error["type"] not in _UNSHOWN and not isinstance(error["input"], dict | list)
    return f" (found {error['input']!r})" if shown else ""


def load(model: type[S], path: str | Path | None) -> S:
    """Read settings from a YAML file, or from YAML in braces; the defaults if `path` is None. Raises `ConfigError`."""
    if path is None:
        return model()
    try:
        is_text = str(path).startswith("{")
        values = yaml.safe_load(str(path) if is_text else Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("bad-config", f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError("bad-config", f"{path}: not valid YAML: {error}") from None
    if values is None:
        return model()
    if not isinstance(values, dict):
        raise ConfigError("bad-config", f"{path}: found {type(values).__name__}, expected a mapping of settings")
    return parse(model, values, str(path))
