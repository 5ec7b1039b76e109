"""What VAEGAN (`vaegan.py`) and TF-VAEGAN (`tf_vaegan.py`) share: four networks, the critic's loss, the training.

    x, a -> encoder -> z;   z, a -> decoder = generator -> x^;   x or x^, a -> critic;   x or x^ -> reader -> a^

Shapes: B images of a batch, N training images, D features in [0, 1], A attributes = size of the latent code, K seen
surfaces; a is the class embedding of an image's surface. A training has two passes: in the first both networks are a
plain VAE with a critic, what the second adds is their own. Only the reader is kept for use: it needs no class, so it
also speaks of surfaces never seen, and then extrapolates.

Departures from the papers, for both:
- No image, feature or CE of an unseen surface takes part in training.
- CEs keep the scale of the attribute table; TF-VAEGAN gives them, and what is read, the length 1. Words are read off
  their values.
- Hidden layers are `settings.hidden` wide (4096 there), one a network; the penalty weight is fixed (adapted there).
- The learning rate of the reader falls to zero.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sbdzsl.config import ReadingLoss, RouterSettings
from sbdzsl.sbad.ce_vae import (
    BATCH_SIZE,
    FeatureDecoder,
    GaussianEncoder,
    adam,
    cross_entropy,
    draw,
    initialise,
    kl_divergence,
    update,
)

LEARNING_RATE = 1e-3
CRITIC_LEARNING_RATE = 1e-4
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


class EmbeddingReader(nn.Module):
    """Features [B, D] -> class embedding a^ [B, A], linear at the end: values live on the scale of the CEs.

    Encoder-2 of Figure 4; the semantic embedding decoder (Dec) of TF-VAEGAN.
    """

    def __init__(self, num_features: int, hidden: int, num_attributes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, hidden)
        self.output = nn.Linear(hidden, num_attributes)

    def activations(self, x: Tensor) -> Tensor:
        """The hidden layer, [B, hidden]."""
        return nn.functional.leaky_relu(self.hidden(x), 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """The class embedding that the features speak for."""
        return self.output(self.activations(x))


class FeatureGAN(nn.Module):
    """The interface of both networks and what they have in common. `name` is for messages.

    The weights are class attributes, so that a study can take a part away by a subclass.
    """

    name: ClassVar[str]
    kl_weight: ClassVar[float] = 1.0
    gan_weight: ClassVar[float] = 10.0  # gamma of TF-VAEGAN
    real_weight: ClassVar[float]  # of the reading loss on real features
    fake_weight: ClassVar[float]  # of the reading loss on generated features

    def __init__(self, num_features: int, num_attributes: int, settings: RouterSettings) -> None:
        super().__init__()
        self.reading_loss = settings.reading_loss
        self.encoder = GaussianEncoder(num_features + num_attributes, settings.hidden, num_attributes)
        self.decoder = FeatureDecoder(2 * num_attributes, settings.hidden, num_features)
        self.critic = Critic(num_features, num_attributes, settings.hidden)
        self.reader = EmbeddingReader(num_features, settings.hidden, num_attributes)

    def second_pass(self, step: int, num_steps: int) -> bool:
        """Whether generator step `step` of `num_steps` belongs to the second pass."""
        raise NotImplementedError

    def generator_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> Tensor:
        """What the generator step lowers, a scalar: the loss of encoder, decoder and reader; `second`: which pass."""
        raise NotImplementedError

    def decode(self, z: Tensor, a: Tensor, second: bool) -> Tensor:
        """Code and class embedding, each [B, A] -> logits of features [B, D]."""
        return self.decoder(torch.cat([z, a], dim=1))

    def generate(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of x^ [B, D], with the mean and log-variance [B, A] of the code it was decoded from."""
        mean, log_variance = self.encoder(torch.cat([x, a], dim=1))
        return self.decode(draw(mean, log_variance, generator), a, second), mean, log_variance

    def synthesise(self, a: Tensor, generator: torch.Generator) -> Tensor:
        """Features [B, D] in [0, 1] for class embeddings [B, A], of codes drawn from N(0, 1): no image takes part."""
        with torch.no_grad():
            return self.decode(torch.randn(a.shape, generator=generator), a, second=True).sigmoid()

    def read_loss(self, x: Tensor, a: Tensor) -> Tensor:
        """Dissimilarity of what is read off features [B, D] to the class embedding [B, A], by the settings' loss."""
        return dissimilarity(self.reader(x), a, self.reading_loss)

    def critic_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> Tensor:
        """gamma (E[C(x^)] - E[C(x)] + lambda (||grad C|| - 1)^2): WGAN-GP, the penalty between x and x^."""
        with torch.no_grad():
            fake = self.generate(x, a, generator, second)[0].sigmoid()
        share = torch.rand(len(x), 1, generator=generator)
        between = (share * x + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between, a).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return self.gan_weight * (self.critic(fake, a).mean() - self.critic(x, a).mean() + PENALTY_WEIGHT * penalty)

    def vae_gan_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> tuple[Tensor, Tensor]:
        """L_BCE + L_KL - gamma E[C(x^)], a scalar, and x^ [B, D] in [0, 1]."""
        logits, mean, log_variance = self.generate(x, a, generator, second)
        fake = logits.sigmoid()
        loss = cross_entropy(logits, x) + self.kl_weight * kl_divergence(mean, log_variance, 0.0)
        return loss - self.gan_weight * self.critic(fake, a).mean(), fake


def dissimilarity(a_hat: Tensor, a: Tensor, loss: ReadingLoss) -> Tensor:
    """Of two class embeddings [B, A], a scalar: `mse` is eq. 4, `l1` what the paper says of TF-VAEGAN.

    Averaged over the batch and summed over the attributes, else L_BCE, a sum over D, drowns it.
    """
    apart = a_hat - a
    return (apart.square() if loss == "mse" else apart.abs()).sum(dim=1).mean()


def train_feature_gan(
    network: FeatureGAN,
    x: Tensor,
    labels: Tensor,
    class_embeddings: Tensor,
    settings: RouterSettings,
    generator: torch.Generator,
) -> None:
    """Initialise `network` and train it.

    `x` [N, D] in [0, 1]; `labels` [N], int64 in 0..K-1; `class_embeddings` [K, A]. `settings.vaegan_steps` counts
    generator steps, each after `critic_steps` steps of the critic and, as in TF-VAEGAN, of the reader on real features.
    Raises `TrainingError` (`not-finite`).
    """
    initialise(network, generator)
    critic_optimiser = adam(network.critic.parameters(), CRITIC_LEARNING_RATE)
    reader_optimiser = adam(network.reader.parameters(), LEARNING_RATE)
    others = [part for name, part in network.named_children() if name not in ("critic", "reader")]
    generator_optimiser = adam((weight for part in others for weight in part.parameters()), LEARNING_RATE)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
        return x[chosen], class_embeddings[labels[chosen]]

    for step in range(settings.vaegan_steps):
        second = network.second_pass(step, settings.vaegan_steps)
        reader_optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / settings.vaegan_steps)
        for _ in range(settings.critic_steps):
            real, a = batch()
            # They share no weight, so one step of the sum is a step of each.
            loss = network.critic_loss(real, a, generator, second) + network.real_weight * network.read_loss(real, a)
            update(loss, f"{network.name}, critic and reader", step, critic_optimiser, reader_optimiser)
        loss = network.generator_loss(*batch(), generator, second)
        update(loss, network.name, step, generator_optimiser, reader_optimiser)
