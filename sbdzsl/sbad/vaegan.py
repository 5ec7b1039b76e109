"""VAEGAN: the paper's network that reads a class embedding off an image's features (Figure 4).

    x, a -> Encoder-1 -> z;   z, a -> Decoder = Generator -> x^;   x or x^, a -> Discriminator
    x or x^ -> Encoder-2 -> a^   (with the Decoder, the "reversed autoencoder")

Here Encoder-1 is `encoder`, the Discriminator `critic`, Encoder-2 `reader`; they and the losses taken over from
TF-VAEGAN are in `feature_gan.py`, as are the departures that both networks share.

Departures of this one:
- The rule "large dissimilarity" is a minimum over the seen CEs (`decision.py`), since at test time the surface is not
  known.
- Encoder-2 sees generated features only in the second half of the training and with a tenth of the weight: fed
  immature ones in full, it names fewer images rightly than without them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbdzsl.sbad.feature_gan import FeatureGAN


class VAEGAN(FeatureGAN):
    """The four networks of Figure 4; the second pass is the second half of the training."""

    name = "VAEGAN"
    real_weight = 1.0
    fake_weight = 0.1  # of eq. 4 on generated features; the AWA2 value of TF-VAEGAN

    def second_pass(self, step: int, num_steps: int) -> bool:
        """From half of the steps on."""
        return 2 * step >= num_steps

    def generator_loss(self, x: Tensor, a: Tensor, generator: torch.Generator, second: bool) -> Tensor:
        """L_BCE + L_KL - gamma E[C(x^)] + L_MSE: Encoder-1, Decoder and Encoder-2 in one step.

        L_MSE (eq. 4) holds for real x, and in the second pass for generated x^ too, which also trains the Decoder.
        """
        loss, fake = self.vae_gan_loss(x, a, generator, second)
        loss = loss + self.real_weight * self.read_loss(x, a)
        return loss + self.fake_weight * self.read_loss(fake, a) if second else loss
