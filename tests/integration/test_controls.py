"""Known-broken encoders around a trained one: each must be caught, and the trained one must not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.evaluation.verdict import CONTROLS, Verdict, examine
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat

pytestmark = pytest.mark.integration

THREAT = LinfThreat(eps=0.1)
SEARCH = PGD(steps=40, alpha=0.01, keep="best")
IMAGES = 160

EXPECTED = {
    "gradient killer": ("OVERESTIMATED", {"R4", "R5", "R14"}),
    "broken graph": ("OVERESTIMATED", {"R4"}),
    "input quantiser": ("OVERESTIMATED", {"R4", "R14"}),
    "extreme temperature": ("OVERESTIMATED", {"R4"}),
    "random input": ("INVALID", {"R1", "R5"}),
    "collapsed": ("VACUOUS", {"R24"}),
}


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    """A small network after two epochs on digits."""
    train = Digits().load().train
    net = SmallCNN(width=8, embedding_dim=64).build((1, 8, 8), seed=0)
    generator = stream(0, "controls")
    proxies = torch.randn(10, 64, generator=generator)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(2):
        for rows in torch.randperm(len(train), generator=generator).split(48):
            loss = F.cross_entropy(10 * net(train.x[rows]) @ F.normalize(proxies).T, train.y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def examined(encoder: nn.Module) -> Verdict:
    test = Digits().load().test
    made = retrieval_task(encoder, test.x[:IMAGES], test.y[:IMAGES])
    return examine(made, search=SEARCH, threat=THREAT, queries=48)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_broken_encoder_is_caught(encoder: nn.Module, name: str) -> None:
    verdict = examined(CONTROLS[name](encoder))
    word, ids = EXPECTED[name]
    assert verdict.word == word
    assert ids <= set(verdict.failed), verdict.failed


def test_a_sane_encoder_is_not(encoder: nn.Module) -> None:
    verdict = examined(encoder)
    assert set(verdict.failed) <= {"R32"}, verdict.fixes
    assert verdict["R22"].status == "pass"
    assert len(verdict.warned) <= 2


def test_a_sane_evaluation_of_enough_queries_is_trustworthy(encoder: nn.Module) -> None:
    test = Digits().load().test
    made = retrieval_task(encoder, test.x, test.y)
    threat = LinfThreat(eps=0.3)  # nearly everything breaks, so that the interval is short
    search = PGD(steps=12, alpha=0.06, keep="best")
    results = run_suite(made, SUITES["core"], search, threat)
    verdict = examine(made, results, search=search, threat=threat, queries=48)
    assert verdict.word == "TRUSTWORTHY", (verdict.fixes, verdict.warned)
