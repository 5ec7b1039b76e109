"""VAEGAN: the network that reads a class embedding off an image's features (paper, Figure 4).

    x, a -> Encoder-1 -> z;   z, a -> Decoder = Generator -> x^;   x or x^, a -> Critic;   x or x^ -> Encoder-2 -> a^

Shapes: B images of a batch, N training images, D features in [0, 1], A attributes = size of the latent code, K seen
surfaces; a is the learned CE of an image's surface. Only Encoder-2 is kept: it needs no class, so it also speaks of
surfaces never seen, and then extrapolates.

Departures from the paper and from TF-VAEGAN, whose losses the paper adopts:
- No image, feature or CE of an unseen surface takes part. The rule "large dissimilarity" is a minimum over the seen
  CEs (`decision.py`), since at test time the surface is not known.
- Encoder-2 sees generated features only in the second half of the training: fed immature ones, it gets worse.
- Hidden layers are `settings.hidden` wide (4096 there), the penalty weight is fixed (adapted there).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.ce_vae import (
    BATCH_SIZE,
    FeatureDecoder,
    GaussianEncoder,
    cross_entropy,
    draw,
    initialise,
    kl_divergence,
    require_finite,
)

LEARNING_RATE = 1e-3
CRITIC_LEARNING_RATE = 1e-4
GAN_WEIGHT = 10.0  # gamma of TF-VAEGAN
PENALTY_WEIGHT = 10.0  # lambda of WGAN-GP


class Critic(nn.Module):
    """WGAN critic: features and class embedding -> one number, larger for real features."""

    def __init__(self, num_features: int, num_attributes: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(num_features + num_attributes, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """[B, D], [B, A] -> [B]."""
        return self.body(torch.cat([x, a], dim=1)).squeeze(1)


class Encoder2(nn.Module):
    """Features [B, D] -> class embedding a^ [B, A], linear at the end: values live on the scale of the learned CE."""

    def __init__(self, num_features: int, hidden: int, num_attributes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, hidden)
        self.output = nn.Linear(hidden, num_attributes)

    def forward(self, x: Tensor) -> Tensor:
        """The class embedding that the features speak for."""
        return self.output(nn.functional.leaky_relu(self.hidden(x), 0.2))


class VAEGAN(nn.Module):
    """The four networks of Figure 4 and their losses."""

    def __init__(self, num_features: int, hidden: int, num_attributes: int) -> None:
        super().__init__()
        self.encoder1 = GaussianEncoder(num_features + num_attributes, hidden, num_attributes)
        self.decoder = FeatureDecoder(2 * num_attributes, hidden, num_features)
        self.critic = Critic(num_features, num_attributes, hidden)
        self.encoder2 = Encoder2(num_features, hidden, num_attributes)

    def generate(self, x: Tensor, a: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of x^ [B, D], with the mean and log-variance [B, A] of the code it was decoded from."""
        mean, log_variance = self.encoder1(torch.cat([x, a], dim=1))
        z = draw(mean, log_variance, generator)
        return self.decoder(torch.cat([z, a], dim=1)), mean, log_variance

    def critic_loss(self, x: Tensor, a: Tensor, generator: torch.Generator) -> Tensor:
        """gamma (E[C(x^)] - E[C(x)] + lambda (||grad C|| - 1)^2): WGAN-GP, the penalty between x and x^."""
        with torch.no_grad():
            fake = self.generate(x, a, generator)[0].sigmoid()
        share = torch.rand(len(x), 1, generator=generator)
        between = (share * x + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between, a).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return GAN_WEIGHT * (self.critic(fake, a).mean() - self.critic(x, a).mean() + PENALTY_WEIGHT * penalty)

    def generator_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, *, use_fakes: bool) -> Tensor:
        """L_BCE + L_KL - gamma E[C(x^)] + L_MSE: Encoder-1, Decoder and Encoder-2 in one step.

        L_MSE (eq. 4) holds for real x, and with `use_fakes` for generated x^ too, which also trains the Decoder: the
        "reversed autoencoder" of the paper. It is summed over the attributes, else L_BCE, a sum over D, drowns it.
        """
        logits, mean, log_variance = self.generate(x, a, generator)
        fake = logits.sigmoid()
        loss = cross_entropy(logits, x) + kl_divergence(mean, log_variance, 0.0)
        loss = loss - GAN_WEIGHT * self.critic(fake, a).mean() + dissimilarity(self.encoder2(x), a)
        return loss + dissimilarity(self.encoder2(fake), a) if use_fakes else loss


def dissimilarity(a_hat: Tensor, a: Tensor) -> Tensor:
    """Eq. 4 summed over the attributes, averaged over the batch."""
    return (a_hat - a).square().sum(dim=1).mean()


def train_encoder2(
    x: Tensor, labels: Tensor, class_embeddings: Tensor, settings: RouterSettings, generator: torch.Generator
) -> Encoder2:
    """Train the VAEGAN and return its Encoder-2, the part that is used after training.

    `x` [N, D] in [0, 1]; `labels` [N], int64 in 0..K-1; `class_embeddings` [K, A]. `settings.vaegan_steps` counts
    generator steps, each after `critic_steps` steps of the critic and, as in TF-VAEGAN, of Encoder-2 on real features.
    Raises `TrainingError` (`not-finite`).
    """
    network = VAEGAN(x.shape[1], settings.hidden, class_embeddings.shape[1])
    initialise(network, generator)
    critic_optimiser = torch.optim.Adam(network.critic.parameters(), lr=CRITIC_LEARNING_RATE, betas=(0.5, 0.999))
    encoder2_optimiser = torch.optim.Adam(network.encoder2.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
    vae = [*network.encoder1.parameters(), *network.decoder.parameters()]
    vae_optimiser = torch.optim.Adam(vae, lr=LEARNING_RATE, betas=(0.5, 0.999))

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
        return x[chosen], class_embeddings[labels[chosen]]

    for step in range(settings.vaegan_steps):
        for _ in range(settings.critic_steps):
            real, a = batch()
            _update(network.critic_loss(real, a, generator), "critic", step, critic_optimiser)
            _update(dissimilarity(network.encoder2(real), a), "Encoder-2", step, encoder2_optimiser)
        use_fakes = 2 * step >= settings.vaegan_steps
        loss = network.generator_loss(*batch(), generator, use_fakes=use_fakes)
        _update(loss, "VAEGAN", step, vae_optimiser, encoder2_optimiser)
    return network.encoder2


def _update(loss: Tensor, network: str, step: int, *optimisers: torch.optim.Optimizer) -> None:
    require_finite(loss, network, step)
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for optimiser in optimisers:
        optimiser.step()
