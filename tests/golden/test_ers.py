"""The empirical robustness score: its formula on published rows, and whole suites on published weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.attacks import Outcome
from holdfast.data import FashionMNIST
from holdfast.encoders import C2F2
from holdfast.evaluation import SUITES, EntryResult, evaluate_retrieval, retrieval_task, run_suite, score
from holdfast.search import PGD
from holdfast.threat import LinfThreat

pytestmark = pytest.mark.golden
HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
ITEMS = ["CA+", "CA-", "QA+", "QA-", "TMA", "ES:D", "ES:R", "LTM", "GTM", "GTT"]
with (HERE / "ers_rows.csv").open() as rows:
    ROWS = list(csv.DictReader(rows))  # published figures: Zhou and Patel, CVPR 2022, tables and appendix


def results_of(row: dict[str, str], suite: str) -> list[EntryResult]:
    """Return suite results whose measures are the published ones."""
    results = []
    for entry in SUITES[suite].entries:
        measures = {}
        for item in SUITES[suite].items:
            if item.label == entry.label:
                percent = item.name not in ("TMA", "ES:D")
                measures[item.metric] = torch.tensor([float(row[item.name]) / (100 if percent else 1)])
        outcome = Outcome(x=torch.zeros(1), z=torch.zeros(1), clean={}, attacked=measures)
        results.append(EntryResult(entry, outcome, 0.0))
    return results


@pytest.mark.parametrize("suite", ["ers", "ers-robrank"])
def test_published_scores_follow_from_their_ten_numbers(suite: str) -> None:
    assert len(ROWS) >= 90
    for row in ROWS:
        found = score(SUITES[suite], results_of(row, suite))
        assert list(found.items) == ITEMS
        assert found.total.value == pytest.approx(float(row["ERS"]), abs=0.1), row


def test_batch_means_weigh_a_short_batch_more() -> None:
    values = torch.cat([torch.zeros(128), torch.ones(32)])  # a batch of 128 and one of 32
    every = dict.fromkeys(("rank", "cosine", "shift", "recall@1", "retain@4"), values)
    outcome = Outcome(x=values, z=values, clean={}, attacked=every)
    results = [EntryResult(entry, outcome, 0.0) for entry in SUITES["ers-robrank"].entries]
    assert score(SUITES["ers-robrank"], results).items["ES:R"].value == pytest.approx(50.0)
    assert score(SUITES["ers"], results).items["ES:R"].value == pytest.approx(20.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_seed1", "hm_ics_seed2"])
def test_published_weights_score_as_in_the_reference(name: str) -> None:
    """Within 0.5 points (targets are random) and 0.001 for the benign figures that are means over queries."""
    folder = SHARED / "golden" / "weights"
    if not folder.exists():
        pytest.skip(f"published weights are not here: {folder} does not exist")
    reference = json.loads((folder / "reference.json").read_text())[name]
    encoder = C2F2().build((1, 28, 28), 0)
    places = {"0": "trunk.0", "3": "trunk.3", "7": "trunk.7", "9": "head"}
    state = encoder.state_dict()
    with np.load(folder / f"{name}.npz", allow_pickle=False) as weights:
        for key in weights.files:
            layer, kind = key.split(".")
            state[f"{places[layer]}.{kind}"] = torch.from_numpy(weights[key])
    encoder.load_state_dict(state)
    test = FashionMNIST(SHARED / "data" / "fashion-mnist", test_images=500).load().test
    task = retrieval_task(encoder, test.x, test.y)
    clean = evaluate_retrieval(task)["map@10"].value
    assert clean == pytest.approx(reference["benign"]["mAP@R"], abs=0.005)  # theirs: mean of batch means
    search, threat = PGD(steps=32, alpha=3 / 255), LinfThreat(eps=77 / 255)
    found = score(SUITES["ers-robrank"], run_suite(task, SUITES["ers-robrank"], search, threat))
    assert found.total.value == pytest.approx(reference["ERS"], abs=0.5)
