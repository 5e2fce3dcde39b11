"""Acceptance tests of the specification that need trained ensembles: T8, T9, T11, and the count of passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import CLUSTER_ATTACKS, run
from holdfast.config import replace as replace_path
from holdfast.data import DataSplit
from holdfast.defenses.ensemble import EnsembleTraining
from holdfast.encoders import Ensemble, SmallCNN
from holdfast.evaluation.cluster_transfer import transfer_matrix
from holdfast.evaluation.embed import under_clusters
from holdfast.evaluation.suites import SUITES
from holdfast.functional.distance import Euclidean
from holdfast.inference import cluster_task
from holdfast.recipes import recipe
from holdfast.rng import seeded, stream
from holdfast.search import APGD, PGD
from holdfast.threat import LinfThreat
from holdfast.training import train
from holdfast.types import ClusterTask, Context, Progress

MEMBER = SmallCNN(width=8, embedding_dim=16)
EPS = 0.1
THREAT = LinfThreat(eps=EPS)
SEARCH = PGD(steps=15, alpha=EPS / 4, keep="best")


@pytest.fixture(scope="module")
def split() -> DataSplit:
    return cast(DataSplit, replace_path(recipe("proxy"), "data.train_images", 300).data.load())


def trained(name: str, split: DataSplit, seed: int, members: int = 2, epochs: int = 4) -> Any:
    run_ = replace(recipe(name), encoder=Ensemble(members=(MEMBER,) * members), epochs=epochs, seed=seed)
    defense = replace(
        cast(Any, run_.defense), search=PGD(steps=3, alpha=EPS / 2, random_start=True), threat=THREAT
    )
    return train(replace(run_, defense=defense, threat=THREAT, device="cpu"), split).encoder


def queries(encoder: Any, split: DataSplit, n: int = 100) -> ClusterTask:
    task = cluster_task(
        encoder, split.test.x[:n], split.test.y[:n], references=split.train.x, reference_labels=split.train.y
    )
    return task


@pytest.fixture(scope="module")
def pairs(split: DataSplit) -> list[tuple[Any, Any]]:
    """EAT and independent adversarial training, for three seeds."""
    return [
        tuple(trained(name, split, seed) for name in ("eat", "ensemble-independent"))  # type: ignore[misc]
        for seed in range(3)
    ]


def off_diagonal(rates: Tensor) -> float:
    return float(rates[~torch.eye(len(rates), dtype=torch.bool)].mean())


def test_eat_transfers_less_between_members_than_independent_training(
    pairs: list[tuple[Any, Any]], split: DataSplit
) -> None:
    """T8, paired over three seeds."""
    differences = []
    for eat, independent in pairs:
        rates = [off_diagonal(transfer_matrix(queries(e, split), SEARCH, THREAT)) for e in (eat, independent)]
        differences.append(rates[0] - rates[1])
    assert sum(differences) / 3 < 0
    assert sorted(differences)[1] < 0


def test_the_attack_on_the_joint_embedding_is_the_strongest(
    pairs: list[tuple[Any, Any]], split: DataSplit
) -> None:
    """T9: no member's own attack breaks more of the ensemble, so no member dominates the gradient."""
    aim: Any = CLUSTER_ATTACKS["A1"]
    for eat, _ in pairs:
        task = queries(eat, split)
        joint = float(run(task, aim, SEARCH, THREAT).attacked["flip"].mean())
        for m in range(len(eat)):
            seen: Any = under_clusters(task, eat.member(m))
            x = run(seen, aim, SEARCH, THREAT).x
            with torch.no_grad():
                flips = aim.measure(eat(x), None, task)["flip"]
            assert float(flips.mean()) <= joint + 0.02


def test_an_undefended_encoder_keeps_no_cluster(split: DataSplit) -> None:
    """T11: attack validity."""
    run_ = replace(recipe("proxy"), encoder=MEMBER, epochs=4, device="cpu")
    encoder = train(run_, split).encoder
    task = queries(encoder, split)
    attack = SUITES["clustering-worst"].entries[0].attack
    found = attack.run(task, APGD(steps=10), LinfThreat(eps=0.3))
    assert float(found.clean["accuracy"].mean()) > 0.7
    assert float(found.attacked["accuracy"].mean()) <= 0.02


@pytest.mark.parametrize(("members", "steps"), [(3, 7), (2, 3)])
def test_a_batch_costs_what_the_specification_says(members: int, steps: int) -> None:
    """Section 3.6: M T for members' attacks, M T for the joint one, M (M + 2) for the update."""
    encoder = Ensemble(members=(MEMBER,) * members).build((1, 8, 8), 0)
    rows = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows[0] += len(inputs[0])

    for m in range(members):
        encoder.member(m).register_forward_pre_hook(count)
    defense = EnsembleTraining(search=PGD(steps=steps, alpha=0.05, random_start=True), threat=THREAT)
    n = 12
    with seeded(0, "learnable"):
        learnable = defense.setup(encoder, torch.arange(n) % 3)
    ctx = Context(
        encoder=encoder, bare=encoder, x=torch.rand(n, 1, 8, 8), y=torch.arange(n) % 3,
        index=torch.arange(n), distance=Euclidean(), learnable=learnable, generator=stream(0),
        progress=Progress(step=1, steps=2),
    )  # fmt: skip
    for _ in defense.losses(ctx):
        pass
    said = defense.passes(members)
    assert said == 2 * members * steps + members * (members + 2)
    assert rows[0] / n == pytest.approx(said, rel=0.1)
