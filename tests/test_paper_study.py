"""What the figures of benchmarks/sbad_paper.py stand on."""

import itertools

import pytest
import sbad_paper as study
import torch
import vaegan_parts as parts

from sbdzsl.config import RouterSettings

SETTINGS = RouterSettings(hidden=16)


def test_the_rounds_hold_all_pairs_once_and_each_surface_once_a_round() -> None:
    rounds = study.round_robin("abcdefghij")
    pairs = [frozenset(pair) for one in rounds for pair in one]
    assert sorted(map(sorted, pairs)) == [list(pair) for pair in itertools.combinations("abcdefghij", 2)]
    assert all(sorted("".join(map("".join, one))) == list("abcdefghij") for one in rounds)


def test_gains_are_taken_between_twins_of_one_pair() -> None:
    rows = {
        "vaegan, real CE, mse": [{"h": 0.5}, {"h": 0.9}],
        "vaegan, learned CE, mse": [{"h": 0.75}, {"h": 0.8}],
        "tf-vaegan, real CE, mse": [{"h": 0.1}],
    }
    found = study.compared(rows, "real", "learned")
    assert list(found) == ["vaegan, learned CE, mse minus real"]
    assert found["vaegan, learned CE, mse minus real"] == {"mean": 7.5, "sd": 17.5, "runs": 2, "better": 1, "worse": 1}
    against = study.compared(rows, "tf-vaegan", "vaegan")
    assert list(against) == ["vaegan, real CE, mse minus tf-vaegan"]
    assert against["vaegan, real CE, mse minus tf-vaegan"]["mean"] == 40


@pytest.mark.parametrize("network", [parts.NoFakes, parts.NoGAN])
def test_without_generated_features_nothing_of_the_gan_reaches_encoder_2(network: type) -> None:
    """The reader's gradient in the second pass is that of real features alone."""
    x, a = torch.rand(8, 12), torch.rand(8, 3)
    built = network(12, 3, SETTINGS)
    built.generator_loss(x, a, torch.Generator().manual_seed(0), True).backward()
    found = built.reader.hidden.weight.grad.clone()
    built.zero_grad()
    built.read_loss(x, a).backward()
    torch.testing.assert_close(found, built.reader.hidden.weight.grad)


def test_without_a_critic_or_kl_their_terms_are_gone() -> None:
    x, a = torch.rand(8, 12), torch.rand(8, 3)
    built = parts.NoCritic(12, 3, SETTINGS)
    assert built.critic_loss(x, a, torch.Generator().manual_seed(0), False).item() == 0
    torch.manual_seed(0)
    whole, without = parts.VAEGAN(12, 3, SETTINGS), parts.NoKL(12, 3, SETTINGS)
    without.load_state_dict(whole.state_dict())
    with torch.no_grad():
        losses = [one.vae_gan_loss(x, a, torch.Generator().manual_seed(0), False)[0] for one in (whole, without)]
        mean, log_variance = whole.encoder(torch.cat([x, a], 1))
    kl = -0.5 * (1 + log_variance - log_variance.exp() - mean.square()).sum(1).mean()
    torch.testing.assert_close(losses[0] - losses[1], kl)
