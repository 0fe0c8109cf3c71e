import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation
from equipoise_lab.methods.calibrated import WEIGHTS, CalibratedEnsemble, loss, vote_table, votes_of
from torch import nn

VOTES = [np.array([0, 0, 1, 1, 2]), np.array([3, 3, 3, 1, 0])]
TRUTHS = [np.array([0, 0, 0, 1, 0], bool), np.array([1, 1, 0, 0, 1], bool)]


class Constant(nn.Module):
    """Answers the same logits to every image."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.register_buffer("logits", torch.as_tensor(logits, dtype=torch.float32)[None])

    def forward(self, image):
        return self.logits.expand(len(image), *self.logits.shape[1:])


def test_votes_become_probabilities_by_the_table() -> None:
    """One vote was right once in three, two never in one, three twice in three; no vote counts as 0 by definition."""
    assert vote_table(VOTES, TRUTHS, 3) == pytest.approx([0, 1 / 3, 0, 2 / 3])


def test_a_count_never_seen_takes_the_one_below() -> None:
    assert vote_table([np.array([1, 1, 3])], [np.array([1, 0, 1], bool)], 4) == pytest.approx([0, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("marking", range(4))
def test_nested_members_give_the_table_back(marking) -> None:
    """`Σ_j (P_j − P_{j−1}) ŷ_j` is P of the number of votes, where whoever marks more comes first."""
    table = np.array([0.0, 0.2, 0.5, 0.9])
    members = [Constant(np.full((1, 2, 2), 5.0 if j < marking else -5.0)) for j in range(3)]
    answer = CalibratedEnsemble(members, [table], Activation.SIGMOID)(torch.zeros(1, 1, 2, 2))
    p, square, entropy, own = answer[0].unbind(0)
    assert p == pytest.approx(np.full((2, 2), table[marking])) and torch.equal(p, square)
    assert float(entropy.abs().max()) == 0.0
    assert own == pytest.approx(2 * p * (1 - p))


def test_structures_share_what_exceeds_one() -> None:
    """Two structures of .8 each by their tables leave no background; with .8 and .1 it is .1."""
    tables = [np.array([0, 0.8]), np.array([0, 0.1])]

    class Both(CalibratedEnsemble):
        def _probabilities(self, image):
            return torch.tensor([[[0.8, 0.8], [0.8, 0.1]]])[..., None]

    p = Both([Constant(np.zeros((3, 2, 1)))], tables, Activation.SOFTMAX)(torch.zeros(1, 1, 2, 1))[0, :3, :, 0]
    assert p[:, 0] == pytest.approx([0, 0.5, 0.5]) and p[:, 1] == pytest.approx([0.1, 0.8, 0.1])
    assert p.sum(0) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("logits", "votes"),
    [([0.0, 3.0, 0.0], [1, 0]), ([0.0, 1.0, 4.0], [0, 1]), ([2.0, 1.0, 0.0], [0, 0]), ([1.0, 1.0, 0.0], [0.5, 0])],
)
def test_a_member_votes_for_the_largest_logit(logits, votes) -> None:
    found = votes_of(torch.tensor(logits)[None, :, None, None], Activation.SOFTMAX)[0, :, 0, 0]
    assert found.tolist() == votes


def test_only_voxels_near_a_tie_count_in_part() -> None:
    z = torch.tensor([-3.0, -0.25, 0.0, 0.125, 0.25, 3.0])[None, None]
    assert votes_of(z, Activation.SIGMOID)[0, 0].tolist() == [0, 0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("activation", [Activation.SIGMOID, Activation.SOFTMAX])
def test_weights_lean_towards_missing_or_inventing(activation) -> None:
    """A low w makes a missed voxel dearer than an invented one, a high w the other way round; the same truth."""
    target = torch.tensor([[[1, 0]]])

    def price(foreground, w):
        z = torch.tensor(foreground)[None, None, None] * 4.0
        z = z if activation is Activation.SIGMOID else torch.cat([torch.zeros_like(z), z], 1)
        with torch.no_grad():
            return loss(activation, w, Constant(z[0]), torch.zeros(1, 1, 1, 2), target).item()

    missed, invented = [-1.0, -1.0], [1.0, 1.0]
    assert price(missed, WEIGHTS[0]) > price(invented, WEIGHTS[0])
    assert price(missed, WEIGHTS[-1]) < price(invented, WEIGHTS[-1])


def test_the_loss_is_its_formula() -> None:
    """p = ½ everywhere, one true voxel of two: TP = FP = FN = ½; cross-entropy ln 2, e^(−w)-fold where true."""
    w = 2.0
    sigma, weight = 1 / (1 + np.exp(-w)), np.exp(-w)
    dice = 1 - 1.5 / (0.5 + sigma * 0.5 + (1 - sigma) * 0.5 + 1)
    expected = dice + np.log(2) * (weight + 1) / 2
    found = loss(
        Activation.SIGMOID, w, Constant(np.zeros((1, 1, 2))), torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]])
    )
    assert found.item() == pytest.approx(expected, abs=1e-6)
