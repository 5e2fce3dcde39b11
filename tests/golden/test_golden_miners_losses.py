"""Miners and losses against numbers of the published reference code, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.functional.distance import Euclidean
from holdfast.losses import IntraClassStructure, Triplet
from holdfast.miners import Hardest, Semihard, Softhard
from holdfast.types import Roles, TripletView

pytestmark = pytest.mark.golden
Golden = dict[str, np.ndarray]
D = Euclidean()


def tensor(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden[name])


def batch(golden: Golden) -> tuple[Tensor, Tensor]:
    index = tensor(golden, "batch.index")
    return tensor(golden, "gallery.z")[index], tensor(golden, "gallery.y")[index]


def embed(golden: Golden, x: Tensor) -> Tensor:
    """The reference's small network, normalised."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 24),
    ).double()
    names = [name for name in golden if name.startswith("net.")]
    net.load_state_dict({name.removeprefix("net."): tensor(golden, name) for name in names})
    with torch.no_grad():
        return F.normalize(net(x), dim=1)


def in_thirds(z: Tensor) -> Roles:
    return Roles(*z.chunk(3))


def test_the_network_is_the_references(golden: Golden) -> None:
    z = embed(golden, tensor(golden, "gallery.x"))
    torch.testing.assert_close(z, tensor(golden, "gallery.z"), rtol=0, atol=1e-9)


def test_hardest_triplets(golden: Golden) -> None:
    mined = Hardest()(*batch(golden), D)
    assert torch.equal(torch.stack(list(mined)), tensor(golden, "miner.hard"))


def test_candidate_sets(golden: Golden) -> None:
    z, y = batch(golden)
    softhard = Softhard(self_positive=True)
    assert torch.equal(Semihard(margin=0.2).negatives(z, y, D), tensor(golden, "miner.semihard_negatives"))
    assert torch.equal(softhard.negatives(z, y, D), tensor(golden, "miner.softhard_negatives"))
    assert torch.equal(softhard.positives(z, y, D), tensor(golden, "miner.softhard_positives"))


def test_candidate_sets_from_reference_distances(golden: Golden) -> None:
    """The stored sets are all empty (easy classes); here reference distances decide on shuffled rows."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(200, generator=generator)
    z, d = tensor(golden, "gallery.z")[order], tensor(golden, "gallery.d")[order[0::2]][:, order]
    y = torch.randint(5, (100,), generator=generator).repeat_interleave(2)
    same = y[0::2, None] == y
    to_partner = d.gather(1, torch.arange(1, 200, 2)[:, None])
    farthest, nearest = (d * same).amax(1, keepdim=True), torch.where(same, 9.0, d).amin(1, keepdim=True)
    semihard = ~same & (d > to_partner) & (d < to_partner + 0.2)
    negatives, positives = ~same & (d < farthest), same & (d > nearest)
    for expected in (semihard, negatives, positives):
        assert 500 < int(expected.sum()) < 19_000
    assert torch.equal(Semihard(margin=0.2).negatives(z, y, D), semihard)
    for miner in (Softhard(), Softhard(self_positive=True)):
        assert torch.equal(miner.negatives(z, y, D), negatives)
        assert torch.equal(miner.positives(z, y, D), positives)


def test_triplet_loss_of_hardest_triplets(golden: Golden) -> None:
    z, _ = batch(golden)
    rows = tensor(golden, "miner.hard")
    loss = Triplet(margin=0.2)(Roles(z[rows[0]], z[rows[1]], z[rows[2]]), D).mean()
    assert float(loss) == pytest.approx(float(golden["triplet.loss_N_0.2"]), abs=1e-6)


def test_loss_and_structure_term_of_hardness_manipulation(golden: Golden) -> None:
    z, _ = batch(golden)
    a, p, n = tensor(golden, "miner.hard")
    now = in_thirds(embed(golden, tensor(golden, "hm.lga_prev0.1.apn")))
    view = TripletView(now=now, clean=Roles(z[a], z[p], z[n]))
    loss, structure = Triplet(margin=0.2)(now, D).mean(), IntraClassStructure(weight=0.5)(view, D).mean()
    assert float(loss) == pytest.approx(float(golden["hm.adv_triplet_loss"]), abs=1e-6)
    assert float(structure) == pytest.approx(float(golden["hm.ics_lambda0.5"]), abs=1e-6)
    assert min(float(loss), float(structure)) > 1e-3
