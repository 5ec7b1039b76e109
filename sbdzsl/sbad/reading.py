"""The paper's two trainings: CE-VAE for the class embeddings, then VAEGAN or TF-VAEGAN for what reads them.

Shapes: N training images, D features, A attributes, K seen surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.ce_vae import LearnedEmbeddings, learn_class_embeddings
from sbdzsl.sbad.decision import AttributeReader
from sbdzsl.sbad.feature_gan import FeatureGAN, train_feature_gan
from sbdzsl.sbad.tf_vaegan import TFVAEGAN
from sbdzsl.sbad.vaegan import VAEGAN

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

#: `RouterSettings.generator` -> the network of that name.
GENERATORS: dict[str, type[FeatureGAN]] = {"vaegan": VAEGAN, "tf-vaegan": TFVAEGAN}

# Spread below this share of the largest value counts as none: dividing by it would blow rounding up.
_RELATIVE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Reading:
    """A trained network with the scaling of its input and the class embeddings [K, A] that it was trained towards.

    `low` and `span` [D] map training features to [0, 1]; `learnt` is None where the real CE was taken.
    """

    network: FeatureGAN
    low: Features
    span: Features
    class_embeddings: Tensor
    learnt: LearnedEmbeddings | None

    def scaled(self, features: Features) -> Tensor:
        """[n, D] on the scale of the training features, not clipped: other images may leave [0, 1]."""
        return torch.from_numpy((features - self.low) / self.span)

    def reader(self) -> AttributeReader:
        """What is used after training, and stored: Encoder-2 or Dec, in one form."""
        reader = self.network.reader
        with torch.no_grad():
            return AttributeReader(
                self.low,
                self.span,
                reader.hidden.weight.numpy(),
                reader.hidden.bias.numpy(),
                reader.output.weight.numpy(),
                reader.output.bias.numpy(),
                self.class_embeddings.numpy(),
                np.array(2 if self.network.reading_loss == "mse" else 1, dtype=np.float32),
            )


def fit_reading(
    features: Features,
    labels: Labels,
    real_ce: Features,
    settings: RouterSettings,
    seed: int,
    network: type[FeatureGAN] | None = None,
) -> Reading:
    """Train both stages as `settings` say: `class_embedding`, `generator`, `reading_loss`, steps and width.

    `features` [N, D] float32, `labels` [N] in 0..K-1, each present, `real_ce` [K, A]. `network` takes the place of the
    settings' generator. The same arguments give the same bits. Raises `TrainingError` (`not-finite`).
    """
    low = features.min(axis=0)
    span = features.max(axis=0) - low
    span = np.where(span > _RELATIVE_FLOOR * (np.abs(low) + 1), span, 1).astype(np.float32)
    x = torch.from_numpy((features - low) / span)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(labels)
    class_embeddings, learnt = torch.from_numpy(real_ce), None
    if settings.class_embedding == "learned":
        learnt = learn_class_embeddings(x, targets, class_embeddings, settings, generator)
        class_embeddings = learnt.learned
    trained = (network or GENERATORS[settings.generator])(x.shape[1], real_ce.shape[1], settings)
    train_feature_gan(trained, x, targets, class_embeddings, settings, generator)
    return Reading(trained, low, span, class_embeddings, learnt)
