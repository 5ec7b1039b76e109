"""A backbone from a Hugging Face model: any vision net that `transformers` can make and that tells its hidden states.

Its stages are these hidden states: `hidden0` (after the stem, or the patches) to `hiddenN`. Maps stay maps, tokens
become maps again. Of many, such as a ViT's thirteen, six that are spread evenly feed the embedding unless `stages`
says others.

A model comes from a folder, from the local cache or, in training alone, from the hub: safetensors only, and never code
of the model's own. A bundle holds its configuration and weights; restoring it touches neither disk nor network.
Preprocessing is ours: no image processor of `transformers` is used, which would need torchvision and scale the image.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from sbdzsl.errors import ConfigError, TrainingError
from sbdzsl.runtime import require
from sbdzsl.sbad.preprocessing import Normalisation, read_normalisation
from sbdzsl.sbad.stage_maps import as_map, choose_stages, digest_of, mirrored

KIND = "huggingface"

#: Maps that feed the embedding by default, at most.
MAX_DEFAULT_STAGES = 6
#: Smaller crops are mirrored up to this: nets of stride 32 leave nothing of them.
MIN_SIDE_PX = 64

#: Mean and deviation of ImageNet, for models that do not tell their own.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

#: What a configuration holds beside the net: where it came from, labels of a head that is not used.
_NOT_THE_NET = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
)
# Of two shapes, to see which axes are rows and columns; large enough for any stride.
_PROBES = ((128, 192), (192, 128))


class HuggingFaceBackbone(nn.Module):
    """A model of `transformers` with the card that says how to feed it; see `Backbone`.

    `card` has `config` (the model's, plain JSON), `mean`, `std`, `planes` and `stages`.
    """

    def __init__(self, model: nn.Module, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._card = dict(card)
        self._normalisation = Normalisation(tuple(card["mean"]), tuple(card["std"]))
        # Position embeddings are made for one size; most models resample them for others, some when asked to.
        asked = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if asked else {}
        self.requires_grad_(False).eval()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """See `Backbone.stage_names`."""
        return tuple(self._card["stages"])

    @property
    def digest(self) -> str:
        """See `Backbone.digest`."""
        return digest_of(self.tensors(), json.dumps(self._card, sort_keys=True))

    def forward(self, grey: Tensor) -> list[Tensor]:
        """See `Backbone.__call__`."""
        maps = self.all_maps(grey)
        return [maps[int(name.removeprefix("hidden"))] for name in self.stage_names]

    def all_maps(self, grey: Tensor) -> list[Tensor]:
        """The maps of all hidden states, [B, C, h, w] each. `ValueError` for a model whose states are no maps."""
        planes = self._normalisation(mirrored(grey, MIN_SIDE_PX, MIN_SIDE_PX), self._card["planes"])
        found = self.model(pixel_values=planes, output_hidden_states=True, **self._options)
        states = getattr(found, "reshaped_hidden_states", None) or getattr(found, "hidden_states", None)
        if not states:
            raise ValueError("it tells no hidden states")
        return [self._as_map(state, planes.shape[2], planes.shape[3]) for state in states]

    def _as_map(self, state: Tensor, height: int, width: int) -> Tensor:
        if state.ndim == 4:
            return state
        patch = self._card["config"].get("patch_size")
        if state.ndim != 3 or not isinstance(patch, int) or state.shape[1] < (height // patch) * (width // patch):
            raise ValueError(f"hidden states of shape {tuple(state.shape)} are neither maps nor tokens of patches")
        return as_map(state, height // patch, width // patch)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by the model's own names, on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def card(self) -> dict[str, Any]:
        """See `Backbone.card`."""
        return {"kind": KIND, **self._card}

    @classmethod
    def from_card(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HuggingFaceBackbone:
        """The inverse of `card` and `tensors`.

        Raises `ConfigError` (`missing-extra`); `TrainingError` (`weights-missing`) where the installed `transformers`
        makes another net of the configuration.
        """
        transformers = require("transformers")
        try:
            with _quiet(transformers):
                config = transformers.AutoConfig.for_model(**card["config"])
                model = transformers.AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
            model.load_state_dict(dict(tensors))
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                "weights-missing",
                f"backbone {card['source']}: transformers {transformers.__version__} makes another net of its "
                f"configuration than the one in the bundle ({error}); install the version that trained it",
            ) from None
        return cls(model, {name: value for name, value in card.items() if name != "kind"})


def is_hub_id(spec: str) -> bool:
    """Whether `spec` has the form of a Hugging Face id, `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", spec) is not None


def load(spec: str, stages: Sequence[str] = ()) -> HuggingFaceBackbone:
    """The model of a folder or id. Raises `ConfigError`, `TrainingError` as `load_backbone`."""
    transformers = require("transformers")
    local = Path(spec).is_dir()
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(spec, local_files_only=local, trust_remote_code=False)
            # Of a model of images and texts, the half that sees.
            config = getattr(config, "vision_config", config)
            model, info = transformers.AutoModel.from_pretrained(
                spec,
                config=config,
                local_files_only=local,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # noqa: BLE001  whatever the library, the hub or a damaged file makes of it
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            "weights-missing",
            f"backbone {spec!r}: transformers found no model of images with safetensors ({first}); expected a folder "
            "with config.json and safetensors, or an id that the hub or the local cache holds",
        ) from None
    normalisation = read_normalisation(_file(transformers, spec, "preprocessor_config.json")) or IMAGENET
    net = {name: value for name, value in config.to_diff_dict().items() if name not in _NOT_THE_NET}
    card = {
        "config": json.loads(json.dumps(net)) | {"model_type": config.model_type},
        "planes": getattr(config, "num_channels", 3),
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "stages": [],
        "licence": _licence(_file(transformers, spec, "README.md")),
        "source": Path(spec).name if local else spec,
    }
    count = _probe(HuggingFaceBackbone(model, card), [*info["missing_keys"]], spec)
    names = [f"hidden{index}" for index in range(count)]
    card["stages"] = list(choose_stages(names, stages or _spread(names), spec))
    return HuggingFaceBackbone(model, card)


def _probe(backbone: HuggingFaceBackbone, missing: Sequence[str], spec: str) -> int:
    """The number of maps, if they are maps, always the same, and whole without the weights that are missing.

    A checkpoint may lack parts of no use here, such as a pooler. These hold NaN while the maps are looked at, and 0
    after that: chance would give every training another bundle.
    """
    state = backbone.model.state_dict()
    for name in missing:
        state[name].fill_(torch.nan)
    grey = torch.rand(1, 1, *_PROBES[0], generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            first, again, turned = (backbone.all_maps(one) for one in (grey, grey, grey.mT))
    except Exception as error:  # noqa: BLE001  each model has its own way to refuse a size
        raise ConfigError(
            "bad-config", f"backbone {spec!r} cannot be read as maps of crops of any size: {error}; export it to ONNX"
        ) from None
    if not all(one.isfinite().all() for one in first):
        raise TrainingError("weights-missing", f"backbone {spec!r}: found no weights for {', '.join(missing[:3])}, ...")
    if not all(map(torch.equal, first, again)):
        raise ConfigError("bad-config", f"backbone {spec!r} answers by chance: twice the same crop gave two answers")
    for one, other in zip(first, turned, strict=True):
        if one.shape != other.mT.shape:
            raise ConfigError(
                "bad-config",
                f"backbone {spec!r}: a hidden state is {tuple(one.shape)} for one crop and {tuple(other.shape)} for "
                "the same, turned; expected maps [batch, channels, rows, columns]; export it to ONNX",
            )
    for name in missing:
        state[name].zero_()
    return len(first)


def _spread(names: Sequence[str]) -> list[str]:
    """At most `MAX_DEFAULT_STAGES` names, evenly spread, the first and the last among them."""
    count = min(len(names), MAX_DEFAULT_STAGES)
    return [names[round(index * (len(names) - 1) / max(count - 1, 1))] for index in range(count)]


def _file(transformers: Any, spec: str, name: str) -> Path:
    """A file of a model; a path where nothing lies if the model has none."""
    found = transformers.utils.cached_file(
        spec,
        name,
        local_files_only=Path(spec).is_dir(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found or Path(spec) / name)


def _licence(readme: Path) -> str | None:
    """What the model card's front matter says."""
    if not readme.is_file():
        return None
    _, opening, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        values = yaml.safe_load(rest.partition("\n---")[0]) if opening else None
    except yaml.YAMLError:
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return None if licence is None else str(licence)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no table of weights that a head would need."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
