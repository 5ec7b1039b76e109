"""Learn the weights that every training of `lite` begins with, from random surfaces with drawn defects alone.

    python benchmarks/pretrain_lite.py           7,000 steps at width 1, seed 0: the weights in the package
    python benchmarks/pretrain_lite.py --test    what the weights in the package know before any training

Each step draws eight surfaces that never come again, and each of them twice: as it is, and with a defect or two. No
image of anybody's is used, nor the ten surfaces of the drawn lake. Writes
`sbdzsl/sbdd/pretrained/lite-<width>.safetensors` (float16); about 15 minutes on one core. `--test` ranks surfaces drawn
afterwards, and the shared real images (SBDZSL_SHARED), of which the weights saw none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detector_runs import SOURCES, decoded, samples_of
from numpy.typing import NDArray
from record import record
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.datasets.random_textures import draw_surface
from sbdzsl.metrics import average_precision
from sbdzsl.sbdd import start
from sbdzsl.sbdd.augment import DefectDrawer, augment
from sbdzsl.sbdd.batch import dilate
from sbdzsl.sbdd.engine import TorchEngine
from sbdzsl.sbdd.fit import choose_scale
from sbdzsl.sbdd.lite import SegDecLite
from sbdzsl.sbdd.loss import cell_targets, decision_loss, distance_weights, segmentation_loss
from sbdzsl.sbdd.predict import ready, shrink
from sbdzsl.sbdd.trainer import has_fast_bfloat16, one_cycle

SURFACES_PER_STEP = 8
SHAPES = ((192, 192), (256, 160), (160, 256))
LEARNING_RATE = 3e-3
AVERAGED_STEPS = 200
SECOND_DEFECT = 0.2
DILATION_PX = 3


def main() -> None:
    """Train and write the weights, or test the ones that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.test:
        test(chosen.width, chosen.seed)
        return
    network, _ = pretrain(chosen.width, chosen.steps, chosen.seed)
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    target = Path(start.__file__).parent / start.FOLDER / start.start_name(chosen.width)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(safetensors.torch.save(weights))


def test(width: float, seed: int) -> None:
    """AP of the weights in the package, untrained on anything else, on drawn and on real surfaces; chance beside it."""
    weights = start.start_weights(DetectorSettings(width=width))
    assert weights is not None, f"no weights of width {width:g} in the package"
    network = SegDecLite.from_state(width, weights, folded=False)
    figures: dict[str, Any] = {"width": width, "ap_on_fresh_surfaces": fresh_ap(network, seed + 1), "real": {}}
    engine = TorchEngine(ready(network.folded(), "cpu"))
    for source in SOURCES:
        images = [decoded(sample) for sample in samples_of(source, seed, None)]
        scale = choose_scale([image.grey.shape for image in images])
        scores = []
        for image in images:
            decision, logits = engine.judge(shrink(image.grey, scale))
            scores.append(decision + float(logits.max()))
        labels = np.array([image.defective for image in images])
        ap = average_precision(labels, np.array(scores))
        figures["real"][source] = {"ap": ap, "chance": float(labels.mean()), "images": len(images)}
    print(figures)
    record("pretrained_start", figures)


def pretrain(width: float, steps: int, seed: int) -> tuple[SegDecLite, list[tuple[float, float]]]:
    """The network with averaged weights, and both losses of each step."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = SegDecLite(width).channels_last()
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    mean = {name: value.clone() for name, value in network.state_dict().items()}
    fast = has_fast_bfloat16(torch.device("cpu"))
    losses: list[tuple[float, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * one_cycle(step / steps)
        planes, labels = draw_batch(SHAPES[step % len(SHAPES)], generator)
        targets = cell_targets((planes[:, 1:2] > 0.5).float(), planes[:, 2:], DetectorSettings())
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            x = planes[:, :1].contiguous(memory_format=torch.channels_last)
            decision, map_logits = network(x, decision_gradient=0.3)
        map_loss = segmentation_loss(map_logits.float(), targets, torch.ones(len(labels)), dice_weight=0.2)
        label_loss = decision_loss(decision.float(), labels)
        optimiser.zero_grad()
        (map_loss + 0.5 * label_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        share = 1 / min(step + 1, AVERAGED_STEPS)
        for name, value in network.state_dict().items():
            mean[name].lerp_(value, share) if value.is_floating_point() else mean[name].copy_(value)
        losses.append((map_loss.item(), label_loss.item()))
        if (step + 1) % 250 == 0:
            print(step + 1, np.mean(losses[-250:], axis=0).round(4), flush=True)
    network.load_state_dict(mean)
    return network, losses


def draw_batch(shape: tuple[int, int], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Grey, mask and distance weights [2 * SURFACES_PER_STEP, 3, H, W], good and defective in turn, and labels."""
    drawer = DefectDrawer([])
    images: list[NDArray[np.float32]] = []
    for _ in range(SURFACES_PER_STEP):
        good = draw_surface(shape, generator)
        bad, mask = drawer.draw(good, generator)
        if generator.random() < SECOND_DEFECT:
            bad, second = drawer.draw(bad, generator)
            mask |= second
        for grey, where in ((good, np.zeros(shape, np.bool_)), (bad, dilate(mask, DILATION_PX))):
            planes = np.dstack([grey, where, distance_weights(where, 1.0)]).astype(np.float32)
            images.append(augment(planes, generator))
    labels = torch.tensor([0.0, 1.0]).repeat(SURFACES_PER_STEP)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), labels


@torch.inference_mode()
def fresh_ap(network: SegDecLite, seed: int, batches: int = 40) -> float | None:
    """AP of decision plus highest map logit on surfaces that were not drawn before; half of them are defective."""
    generator = np.random.default_rng(seed)
    folded = network.folded()
    scores, labels = [], []
    for _ in range(batches):
        planes, defective = draw_batch(SHAPES[0], generator)
        decision, map_logits = folded(planes[:, :1])
        scores.append((decision + map_logits.amax(dim=(1, 2, 3))).numpy())
        labels.append(defective.numpy() > 0.5)
    return average_precision(np.concatenate(labels), np.concatenate(scores).astype(np.float64))


if __name__ == "__main__":
    main()
