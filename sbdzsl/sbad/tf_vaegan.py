"""TF-VAEGAN: the network that the paper compares with (Narayan et al., ECCV 2020), after its published description.

    x, a -> encoder -> z;   z, a -> generator -> x^;   x or x^, a -> critic;   x or x^ -> Dec -> a^
    hidden layer of Dec(x^) -> F -> added to the generator's hidden layer, which then generates x^ anew

Dec, the semantic embedding decoder, is `reader`; it, the critic and the losses are in `feature_gan.py`, as are the
departures that both networks share. How TF-VAEGAN itself tests, by features synthesised for the unseen classes, is in
`zero_shot.py`.

What it does otherwise than VAEGAN: feedback; Dec sees generated features from the first step on, with the same weight
as real ones.

Departures of this one:
- The passes without and with feedback follow each other step by step, not epoch by epoch: batches are random draws.
- The reading loss is the settings' (`l1` is what the paper says of it). The published code has sum(|d|^3) / ||d||_2 of
  the difference d of two unit vectors.
- Dec and F have the learning rate of the generator (a tenth of it there for some data sets).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.feature_gan import FeatureGAN

FEEDBACK_STRENGTH = 1.0  # a1 in training, a2 in synthesis: the values for CUB


class TFVAEGAN(FeatureGAN):
    """Generator with feedback, critic and Dec; the second pass, with feedback, is every other step."""

    name = "TF-VAEGAN"
    real_weight = 0.1  # the AWA2 value; 0.01 elsewhere
    fake_weight = 0.1

    def __init__(self, num_features: int, num_attributes: int, settings: RouterSettings) -> None:
        super().__init__(num_features, num_attributes, settings)
        hidden = settings.hidden
        self.feedback = nn.Sequential(
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)
        )

    def second_pass(self, step: int, num_steps: int) -> bool:
        """Every other step, the first one without."""
        return step % 2 == 1

    def decode(self, z: Tensor, a: Tensor, second: bool) -> Tensor:
        """[B, A], [B, A] -> logits [B, D]; in the second pass generated twice, the second time after feedback."""
        za = torch.cat([z, a], dim=1)
        if not second:
            return self.decoder(za)
        # What Dec makes of the first attempt is taken as given: only F and the second attempt learn from it.
        heard = self.reader.activations(self.decoder(za).sigmoid()).detach()
        return self.decoder(za, FEEDBACK_STRENGTH * self.feedback(heard))

    def generator_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> Tensor:
        """L_BCE + L_KL - gamma E[C(x^)] + beta L_R(x^): encoder, generator, F and Dec in one step."""
        loss, fake = self.vae_gan_loss(x, a, generator, second)
        return loss + self.fake_weight * self.read_loss(fake, a)
