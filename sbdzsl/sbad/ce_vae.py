"""CE-VAE: the variational autoencoder that turns the real class embeddings (CE) into learned ones (paper, Figure 3).

Shapes: B images of a batch, N training images, D features, A attributes (29 in Table 1), K seen surfaces.

Departures from the paper:
- Eq. 1 lacks brackets and eq. 3 has wrong signs (as printed it falls without bound); both are put right below.
- Features are min-max scaled to [0, 1] on the training images: binary cross-entropy needs it, the paper is silent.
- Eq. 2 is averaged over the features, eq. 3 summed over the attributes, and eq. 2 has a weight: the paper leaves their
  balance open.
- Layer sizes are not given there: D -> hidden -> A (mean, log-variance) -> hidden -> D.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbdzsl.config import RouterSettings
from sbdzsl.errors import TrainingError

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
# Of eq. 2 averaged over the features, against eq. 3. The more, the farther learned CEs leave the scale of the real ones
# and the more words go wrong (agreement 0.92, 0.91, 0.85 at 30, 60, 120); detection is the same. At 30 surfaces with
# equal rows still move well apart.
RECONSTRUCTION_WEIGHT = 30.0


class GaussianEncoder(nn.Module):
    """[B, D] -> mean and log-variance of the latent code, each [B, A]. Encoder of Figures 3 and 4 (Encoder-1)."""

    def __init__(self, num_inputs: int, hidden: int, num_latents: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, hidden), nn.LeakyReLU(0.2))
        self.mean = nn.Linear(hidden, num_latents)
        self.log_variance = nn.Linear(hidden, num_latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of each row's code."""
        h = self.body(x)
        return self.mean(h), self.log_variance(h)


class FeatureDecoder(nn.Module):
    """Latent code [B, Z] -> logits of features scaled to [0, 1], [B, D]. The sigmoid is left to the caller."""

    def __init__(self, num_latents: int, hidden: int, num_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_latents, hidden)
        self.output = nn.Linear(hidden, num_features)

    def forward(self, z: Tensor, feedback: Tensor | float = 0.0) -> Tensor:
        """Logits of the reconstructed features; `feedback` [B, hidden] is added to the hidden layer (TF-VAEGAN)."""
        return self.output(F.leaky_relu(self.hidden(z), 0.2) + feedback)


@dataclass(frozen=True, slots=True)
class LearnedEmbeddings:
    """What the CE-VAE made of the real CE. float32; nothing of an unseen surface is in it.

    `real` and `learned` [K, A]; `code_means` [N, A], the mean of each training image's code, and `labels` [N] int64
    into the surfaces.
    """

    real: Tensor
    learned: Tensor
    code_means: Tensor
    labels: Tensor


class CEVAE(nn.Module):
    """Figure 3: features -> code of A numbers near the real CE -> features."""

    def __init__(self, num_features: int, hidden: int, num_attributes: int) -> None:
        super().__init__()
        self.encoder = GaussianEncoder(num_features, hidden, num_attributes)
        self.decoder = FeatureDecoder(num_attributes, hidden, num_features)

    def loss(self, x: Tensor, real_ce: Tensor, generator: torch.Generator) -> Tensor:
        """Weighted L_REC + L_CE (eq. 2, 3), a scalar; `x` [B, D] in [0, 1], `real_ce` [B, A] of their surfaces."""
        mean, log_variance = self.encoder(x)
        logits = self.decoder(draw(mean, log_variance, generator))
        reconstruction = 0.5 * cross_entropy(logits, x) / x.shape[1]
        return RECONSTRUCTION_WEIGHT * reconstruction + kl_divergence(mean, log_variance, real_ce)


def cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """Eq. 1 with its brackets: -sum_j [x_j log x^_j + (1 - x_j) log(1 - x^_j)], averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def kl_divergence(mean: Tensor, log_variance: Tensor, centre: Tensor | float) -> Tensor:
    """Eq. 3 put right: KL(N(mean, s^2) || N(centre, 1)) = -0.5 sum_j [1 + log s^2 - s^2 - (mean - centre)^2]_j."""
    per_image = (1 + log_variance - log_variance.exp() - (mean - centre).square()).sum(dim=1)
    return -0.5 * per_image.mean()


def draw(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """A latent code by the reparametrisation trick: mean + s * noise."""
    return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Weights N(0, 0.02), zero bias, as in TF-VAEGAN; drawn from `generator` alone."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
            nn.init.zeros_(layer.bias)


def adam(
    parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float] = (0.5, 0.999)
) -> torch.optim.Adam:
    """Adam in its fused form: the nets are small, and one call per parameter would cost more than the step itself."""
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)


def update(loss: Tensor, network: str, step: int, *optimisers: torch.optim.Optimizer) -> None:
    """One step down the loss. Raises `TrainingError` (`not-finite`) where it is NaN or infinite."""
    if not torch.isfinite(loss):
        raise TrainingError(
            "not-finite",
            f"{network}: the loss is {loss.item()} at step {step}, expected a finite number; "
            "check the features for constant or extreme values, or train fewer steps",
        )
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for optimiser in optimisers:
        optimiser.step()


def learn_class_embeddings(
    x: Tensor, labels: Tensor, real_ce: Tensor, settings: RouterSettings, generator: torch.Generator
) -> LearnedEmbeddings:
    """Train a CE-VAE; the learned CE is the mean of the code means over the images of each surface.

    `x` [N, D] in [0, 1]; `labels` [N], int64 in 0..K-1, each present; `real_ce` [K, A]. Learned CEs live on the scale
    of the real ones. Raises `TrainingError` (`not-finite`).
    """
    network = CEVAE(x.shape[1], settings.hidden, real_ce.shape[1])
    initialise(network, generator)
    optimiser = adam(network.parameters(), LEARNING_RATE, betas=(0.9, 0.999))
    for step in range(settings.ce_vae_steps):
        batch = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
        update(network.loss(x[batch], real_ce[labels[batch]], generator), "CE-VAE", step, optimiser)
    with torch.no_grad():
        means, _ = network.encoder(x)
    learned = torch.stack([means[labels == surface].mean(dim=0) for surface in range(len(real_ce))])
    return LearnedEmbeddings(real_ce, learned, means, labels)
