"""What each part of VAEGAN brings: VAEGAN without it, for the ablation of `sbad_paper.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.feature_gan import FeatureGAN
from sbdzsl.sbad.vaegan import VAEGAN


class NoCritic(VAEGAN):
    """A VAE whose generated features Encoder-2 reads, without an adversary."""

    gan_weight = 0.0


class NoKL(VAEGAN):
    """The code may lie anywhere."""

    kl_weight = 0.0


class NoFakes(VAEGAN):
    """Encoder-2 reads real features alone. Nothing else of the GAN reaches it, so this is also "no GAN"."""

    fake_weight = 0.0


class FakesThroughout(VAEGAN):
    """Generated features as the paper has them: from the first step, with the weight of real ones."""

    fake_weight = 1.0

    def second_pass(self, step: int, num_steps: int) -> bool:
        """From the first step on."""
        return True


class NoGAN(VAEGAN):
    """No encoder, generator or critic at all: Encoder-2 alone, with the same steps. What is left is a regression."""

    def critic_loss(self, x: torch.Tensor, a: torch.Tensor, generator: torch.Generator, second: bool) -> torch.Tensor:
        """Nothing to learn."""
        return self.critic(x, a).sum() * 0

    def generator_loss(
        self, x: torch.Tensor, a: torch.Tensor, generator: torch.Generator, second: bool
    ) -> torch.Tensor:
        """Eq. 4 on real features."""
        return self.read_loss(x, a)


Variant = tuple[str, RouterSettings, "type[FeatureGAN] | None"]


def variants(settings: RouterSettings) -> Iterator[Variant]:
    def other(**fields: Any) -> RouterSettings:
        return settings.model_copy(update=fields)

    yield "VAEGAN, whole", settings, None
    yield "no generated features to Encoder-2", settings, NoFakes
    yield "no GAN at all: Encoder-2 alone", settings, NoGAN
    yield "no critic", settings, NoCritic
    yield "no KL", settings, NoKL
    yield "generated features throughout, full weight", settings, FakesThroughout
    yield "real CE", other(class_embedding="real"), None
    yield "L1", other(reading_loss="l1"), None
    yield "TF-VAEGAN, L1", other(generator="tf-vaegan", reading_loss="l1"), None
    default = RouterSettings()
    yield "as by default", other(vaegan_steps=default.vaegan_steps, ce_vae_steps=default.ce_vae_steps), None
