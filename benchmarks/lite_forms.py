"""What folding and memory layout buy: `lite` as trained, folded, and laid out channels last, on PyTorch.

    python benchmarks/lite_forms.py

Medians of 60 interleaved repeats, 512 x 512 network pixels, one image, two threads, random weights. Half a minute.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from record import record
from torch import Tensor, nn

from sbdzsl.sbdd.lite import SegDecLite

SIDE, REPEATS, THREADS = 512, 60, 2


class DepthwiseSeparable(nn.Module):
    """What a 3 x 3 convolution of `lite` would be in two: each channel by itself, then all channels by 1 x 1."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        inputs, outputs = conv.in_channels, conv.out_channels
        self.each = nn.Conv2d(inputs, inputs, 3, conv.stride, 1, groups=inputs, bias=False)
        self.all = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""
        return self.all(self.each(x))


def separable(network: nn.Module) -> nn.Module:
    """The network with each dense 3 x 3 convolution replaced, for its speed alone."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            setattr(network, name, DepthwiseSeparable(child))
        else:
            separable(child)
    return network


def forms() -> dict[str, nn.Module]:
    """The networks to be timed, by what they are."""
    torch.manual_seed(0)
    trained = SegDecLite().eval()
    found: dict[str, nn.Module] = {
        "as trained": trained,
        "folded": trained.folded(),
        "as trained, channels last": SegDecLite().eval().channels_last(),
        "folded, channels last": trained.folded().channels_last(),
        "folded, channels last, depthwise in place of dense": separable(trained.folded()).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        ),
    }
    return found


@torch.inference_mode()
def main() -> None:
    """Time all in turns."""
    torch.set_num_threads(THREADS)
    networks = forms()
    plain = torch.rand(1, 1, SIDE, SIDE)
    last = plain.contiguous(memory_format=torch.channels_last)
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(REPEATS):
        for name, network in networks.items():
            started = time.perf_counter()
            network(last if "last" in name else plain)
            taken[name].append(1e3 * (time.perf_counter() - started))
    rows: dict[str, Any] = {
        name: {
            "ms": round(float(np.median(times)), 2),
            "parameters": sum(parameter.numel() for parameter in networks[name].parameters()),
        }
        for name, times in taken.items()
    }
    for name, row in rows.items():
        print(f"{name:52} {row['ms']:6.2f} ms {row['parameters']:>9,} parameters")
    record("lite_forms", {"side": SIDE, "repeats": REPEATS, "threads": THREADS, "forms": rows})


if __name__ == "__main__":
    main()
