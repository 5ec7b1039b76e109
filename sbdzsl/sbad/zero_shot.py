"""Naming unseen surfaces by their class embedding, as TF-VAEGAN tests: synthesised features and a linear softmax.

The CE of the unseen surfaces is given at test time; their images never take part in training. It is always the real
CE: a learned one is made from images, so an unseen surface cannot have one without a leak. A network that was trained
on learned CEs, which lie near the real ones, gets the real one here.

This is another question than the router's "is it one of mine?": here somebody knows which unseen surfaces there are
and what they look like. The paper prints both under one heading; here they are apart.

Departures from TF-VAEGAN: an unseen surface gets as many synthesised features as a seen one has images on average (300
to 1800 there, against some 60 to 600: with a few dozen images a surface, that many would drown the seen), and the
classifiers learn for a fixed number of steps (25 epochs there, of far more features), of which the last counts, not the
best on test images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbdzsl.sbad.ce_vae import BATCH_SIZE, adam, update
from sbdzsl.sbad.reading import Features, Labels, Reading

NUM_STEPS = 500
LEARNING_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class ZeroShotNames:
    """Names of n images, int64 [n]: `joint` of all surfaces, the K seen ones first; `unseen` of the unseen alone."""

    joint: Labels
    unseen: Labels


def name_by_synthesis(
    reading: Reading, features: Features, labels: Labels, unseen_ce: Features, images: Features, seed: int
) -> ZeroShotNames:
    """Name `images` [n, D] among the K surfaces of the training `features` [N, D], `labels` [N], and the U unseen ones
    of `unseen_ce` [U, A].

    A linear softmax on [x, a^, hidden layer of the reader] learns real features of the seen surfaces and synthesised
    ones of the unseen; a second one the synthesised alone (ZSL). The same arguments give the same names.
    """
    generator = torch.Generator().manual_seed(seed)
    num_seen = len(reading.class_embeddings)
    which = torch.arange(len(unseen_ce)).repeat_interleave(max(round(len(features) / num_seen), 1))
    made_up = _enriched(reading, reading.network.synthesise(torch.from_numpy(unseen_ce)[which], generator))
    real = _enriched(reading, reading.scaled(features))
    asked = _enriched(reading, reading.scaled(images))
    targets = torch.cat([torch.from_numpy(labels), num_seen + which])
    joint = _train_softmax(torch.cat([real, made_up]), targets, generator)
    unseen = _train_softmax(made_up, which, generator)
    with torch.no_grad():
        return ZeroShotNames(joint(asked).argmax(dim=1).numpy(), unseen(asked).argmax(dim=1).numpy())


def _enriched(reading: Reading, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = reading.network.reader.activations(x)
        return torch.cat([x, reading.network.reader.output(hidden), hidden], dim=1)


def _train_softmax(x: Tensor, targets: Tensor, generator: torch.Generator) -> nn.Linear:
    classifier = nn.Linear(x.shape[1], int(targets.max()) + 1)
    nn.init.normal_(classifier.weight, 0.0, 0.02, generator=generator)
    nn.init.zeros_(classifier.bias)
    optimiser = adam(classifier.parameters(), LEARNING_RATE)
    for step in range(NUM_STEPS):
        batch = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
        update(F.cross_entropy(classifier(x[batch]), targets[batch]), "softmax", step, optimiser)
    return classifier
