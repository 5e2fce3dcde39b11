"""What the library promises first: robust training turns a broken encoder into one that holds, at no cost."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from holdfast.attacks import ATTACKS, run
from holdfast.evaluation import evaluate_retrieval, retrieval_task
from holdfast.recipes import recipe
from holdfast.runs import default_search
from holdfast.training import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SEEDS = (0, 1, 2)


def measured(name: str, seed: int) -> tuple[float, float, float]:
    """Train a recipe as it is on the closed split of the digits; return clean R@1, ES R@1 and ES shift."""
    settings = replace(recipe(name, "digits"), seed=seed, device="cpu")
    split = settings.data.load()
    assert split.protocol == "closed"
    encoder = train(settings, split).encoder
    task = retrieval_task(encoder, split.test.x, split.test.y, settings.distance)
    clean = evaluate_retrieval(task, cuts=(1,))["recall@1"].value
    search = default_search(settings.threat.eps)
    outcome = run(task, ATTACKS["ES"], search, settings.threat, seed=0, label="ES")
    attacked = outcome.attacked
    return clean, float(attacked["recall@1"].mean()), float(attacked["shift"].mean())


def test_hardness_manipulation_with_structure_holds_where_plain_training_breaks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {(name, seed): measured(name, seed) for seed in SEEDS for name in ("plain", "hm-ics")}
    with capsys.disabled():
        print("\nrecipe  seed  clean R@1  ES:R R@1  ES:D")  # noqa: T201
        for (name, seed), (clean, attacked, shift) in sorted(found.items()):
            print(f"{name:<7} {seed:>4}  {clean:9.4f}  {attacked:8.4f}  {shift:.4f}")  # noqa: T201
    clean, attacked = (
        {name: mean(found[name, seed][place] for seed in SEEDS) for name in ("plain", "hm-ics")}
        for place in (0, 1)
    )
    assert attacked["hm-ics"] - attacked["plain"] >= 0.45
    assert attacked["plain"] < 0.20
    assert clean["hm-ics"] >= clean["plain"]
