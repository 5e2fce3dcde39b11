"""The worst case over many attacks, query by query."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import ATTACKS, EmbeddingShift, RankMargin, hits, run
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.evaluation.worst_case import OF_ERS, Stage, WorstCase, worst_case
from holdfast.recipes import recipe
from holdfast.search import APGD, PGD
from holdfast.threat import LinfThreat
from holdfast.training import train
from holdfast.types import RetrievalTask

pytestmark = pytest.mark.integration
SEARCH = PGD(steps=8, alpha=0.02)
THREAT = LinfThreat(eps=0.06)


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    """Eighty queries and an encoder that some attacks break and others do not."""

    settings = replace(recipe("plain"), epochs=2, encoder=SmallCNN(width=8, embedding_dim=16), device="cpu")
    split = settings.data.load()
    test = Digits().load().test
    return retrieval_task(train(settings, split).encoder.eval(), test.x[:80], test.y[:80])


def test_it_is_never_weaker_than_an_attack_of_the_score(task: RetrievalTask) -> None:
    worst = worst_case(steps=6, queries=30).run(task, SEARCH, THREAT, seed=5)
    held = worst.attacked["recall@1"]
    assert 0 < float(held.mean()) < float(worst.clean["recall@1"].mean())
    results = {r.entry.label: r.outcome for r in run_suite(task, SUITES["ers"], SEARCH, THREAT, seed=5)}
    for label in OF_ERS:
        z = results[label].z
        assert bool((held <= hits(z, task)).all()), label
    assert torch.equal(worst.clean["recall@1"], hits(task.z, task))


def test_images_prove_what_is_claimed(task: RetrievalTask) -> None:
    worst = worst_case(steps=4, targets=1, queries=10).run(task, SEARCH, THREAT)
    with torch.no_grad():
        z = task.encoder(worst.x)
    assert torch.allclose(z, worst.z, atol=1e-5)
    assert torch.equal(hits(worst.z, task), worst.attacked["recall@1"])
    assert float(THREAT.size(worst.x, task.x).max()) <= THREAT.eps + 1e-6
    assert 0 <= float(worst.x.min()) <= float(worst.x.max()) <= 1
    stage = worst.attacked["stage"]
    assert bool(((stage == -2) == (worst.clean["recall@1"] == 0)).all())
    assert bool(((stage == -1) == (worst.attacked["recall@1"] == 1)).all())
    untouched = stage == -2
    assert torch.equal(worst.x[untouched], task.x[untouched])


def test_stages_attack_only_who_is_left(task: RetrievalTask) -> None:
    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            z: Tensor = task.encoder(x)
            return z

    one = WorstCase(stages=(Stage(label="RANK", attack=RankMargin(), search=APGD(steps=5)),))
    first = one.run(task, SEARCH, THREAT)
    left = int((first.attacked["stage"] == -1).sum())
    assert 0 < left < int(first.clean["recall@1"].sum())
    two = WorstCase(stages=(*one.stages, Stage(label="ES", attack=EmbeddingShift(), search=PGD(steps=1))))

    two.run(replace(task, encoder=Watch()), SEARCH, THREAT)
    assert seen[-1] == left


def test_the_suite_runs_in_chunks_with_the_same_result(task: RetrievalTask) -> None:

    entry = replace(SUITES["worst-case"].entries[0], attack=worst_case(steps=3, targets=1, queries=10))
    suite = replace(SUITES["worst-case"], entries=(entry,))
    whole, parts = (run_suite(task, suite, SEARCH, THREAT, chunk=size)[0].outcome for size in (80, 30))
    for name in ("recall@1", "stage"):
        assert torch.equal(whole.attacked[name], parts.attacked[name])


def test_a_deeper_list_is_harder_to_break(task: RetrievalTask) -> None:
    four = worst_case(k=4, steps=4, targets=1, queries=10).run(task, SEARCH, THREAT)
    one = worst_case(k=1, steps=4, targets=1, queries=10).run(task, SEARCH, THREAT)
    assert list(four.attacked) == ["recall@4", "stage"]
    assert float(four.attacked["recall@4"].mean()) >= float(one.attacked["recall@1"].mean())


def test_one_stage_is_that_attack(task: RetrievalTask) -> None:
    alone = WorstCase(stages=(Stage(label="LTM", attack=ATTACKS["LTM"]),)).run(task, SEARCH, THREAT, seed=3)
    plain = run(task, ATTACKS["LTM"], SEARCH, THREAT, seed=3, label="LTM")
    right = hits(task.z, task) == 1
    assert torch.equal(alone.attacked["recall@1"][right], hits(plain.z, task)[right])


@pytest.mark.parametrize("settings", [{"stages": ()}, {"k": 0}])
def test_bad_settings(settings: dict[str, object]) -> None:
    good = {"stages": (Stage(label="ES", attack=EmbeddingShift()),), "k": 1}
    with pytest.raises(InvalidArgument):
        WorstCase(**{**good, **settings})  # type: ignore[arg-type]
