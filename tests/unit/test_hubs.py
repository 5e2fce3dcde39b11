"""Hubs: k-occurrences by hand, planted hubs, a gate that keeps its rate, and an attack inside its ball."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from holdfast.attacks import ATTACKS, HubAttack
from holdfast.cli.main import app
from holdfast.errors import InvalidArgument
from holdfast.evaluation import retrieval_task, wilson
from holdfast.evaluation.hubs import HubGate, attack_hubs, audit_hubs, occurrence, robust_z
from holdfast.export import audit_vectors
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, RetrievalTask


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def blobs(n: int, classes: int = 5, e: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit embeddings around one direction for each class."""
    generator = stream(seed, "blobs")
    y = torch.arange(n) % classes
    centres = F.normalize(torch.randn(classes, e, generator=stream(7, "centres"), dtype=torch.float64), dim=1)
    noise = torch.randn(n, e, generator=generator, dtype=torch.float64)
    return F.normalize(centres[y] + 0.3 * noise, dim=1), y


def test_counts_by_hand() -> None:
    gallery, queries = line(0, 1, 2, 9), line(0.9, 1.2, 8, 3)
    one = audit_hubs(gallery, queries, k=1, groups=torch.tensor([0, 0, 1, 1]))
    assert one.counts.tolist() == [0, 2, 1, 1]
    two = audit_hubs(gallery, queries, k=2, groups=torch.tensor([0, 0, 1, 1]), budget=0.5)
    # 0.9: 1 and 0; 1.2: 1 and 2; 8: 9 and 2; 3: 2 and 1
    assert two.counts.tolist() == [1, 3, 3, 1]
    # Row 1 serves group 0 twice and group 1 once; row 2 the other way round; the others one group alone.
    both = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert two.spread.tolist() == pytest.approx([0, both, both, 0])
    assert (two.median, two.mad) == (2, 1)
    assert two.z.tolist() == pytest.approx([-1 / 1.4826, 1 / 1.4826, 1 / 1.4826, -1 / 1.4826])
    assert sorted(two.flagged.tolist()) == [1, 2]
    assert two.share().tolist() == [0.25, 0.75, 0.75, 0.25]


def test_a_sample_of_the_gallery_asks_and_does_not_list_itself() -> None:
    # Neighbours: 0 -> 1, 1 -> 0, 3 -> 1, 10 -> 3
    found = audit_hubs(line(0, 1, 3, 10), k=1)
    assert found.counts.tolist() == [1, 2, 1, 0]
    assert found.queries == 4


def test_robust_scores_are_published_ones_and_see_a_hub_where_most_rows_are_never_returned() -> None:
    values = torch.tensor([1.0, 4.0, 6.0, 9.0, 30.0])  # median 6, deviations 5 2 0 3 24: MAD 3
    z, median, mad = robust_z(values)
    assert (median, mad) == (6, 3)
    assert z.tolist() == pytest.approx([(v - 6) / (1.4826 * 3) for v in values.tolist()])
    sparse = torch.zeros(100)
    sparse[3] = 200  # MAD 0
    z, _, mad = robust_z(sparse)
    assert mad == 1
    assert float(z[3]) == pytest.approx(200 / 1.4826)  # neither 0 nor cut off at 100
    assert float(z.sum() - z[3]) == 0


def test_a_planted_hub_is_flagged_first_and_serves_all_groups() -> None:
    """Among directions in many dimensions the origin is nearer to everybody than most rows are."""
    rows = F.normalize(torch.randn(700, 64, generator=stream(0, "directions"), dtype=torch.float64), dim=1)
    z, queries, groups = rows[:500].clone(), rows[500:], torch.arange(200) % 4
    natural = audit_hubs(z, queries, k=10, groups=groups)
    z[123] = 0  # at distance 1 from every query; the tenth row is farther from each
    assert float(torch.cdist(queries, z).kthvalue(10, dim=1).values.min()) > 1
    found = audit_hubs(z, queries, k=10, groups=groups)
    assert found.flagged.tolist() == [123]
    assert int(found.counts[123]) == 200
    assert float(found.spread[123]) == pytest.approx(1)
    assert float(found.z[123]) > 4 * float(natural.z.max())
    gate = HubGate.fit(rows[:500], k=10, rate=0.05)
    assert not bool(gate.admits(z[123:124]))


def test_blocks_and_memory_do_not_change_an_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    z, _ = blobs(400)
    queries, groups = blobs(150, seed=1)
    whole = audit_hubs(z, queries, groups=groups)
    monkeypatch.setattr("holdfast.evaluation.hubs.audit.BLOCK", 7)
    parts = audit_hubs(z, queries, groups=groups, memory=2**20)
    assert torch.equal(whole.counts, parts.counts)
    assert torch.allclose(whole.spread, parts.spread)
    assert int(whole.counts.sum()) == 10 * 150


def test_budget_sets_how_many_are_flagged() -> None:
    z, _ = blobs(400)
    for budget, many in ((0.01, 4), (0.001, 1), (1.0, 400)):
        found = audit_hubs(z, budget=budget)
        assert len(found.flagged) == many
        kept = found.z[found.flagged]
        assert bool((kept[:-1] >= kept[1:]).all())
        assert float(kept[-1]) >= float(found.z.sort(descending=True).values[many - 1])


def test_occurrence_by_hand() -> None:
    gallery = line(0, 1, 2, 9)
    # A candidate at 1.1 in place of row 3; first places of 0.9, 1.2, 8 among 0, 1, 2 have radii 0.1, 0.2, 6.
    queries, moved = line(0.9, 1.2, 8), line(1.1)
    assert occurrence(moved, torch.tensor([3]), queries, gallery, k=1).tolist() == pytest.approx([1 / 3])
    assert occurrence(line(1.15), torch.tensor([3]), queries, gallery, k=1).tolist() == pytest.approx([1 / 3])
    # Added, row 9 stays in the list of 8, whose radius is then 1.
    assert occurrence(line(7.5), torch.tensor([-1]), queries, gallery, k=1).tolist() == pytest.approx([1 / 3])
    assert occurrence(line(5.0), torch.tensor([3]), queries, gallery, k=1).tolist() == pytest.approx([1 / 3])
    assert occurrence(line(5.0), torch.tensor([-1]), queries, gallery, k=1).tolist() == [0]
    # Clean rows by themselves: the audit's own counts, every query being a row and not asked about itself.
    z, _ = blobs(60)
    rows = torch.arange(60)
    counts = audit_hubs(z, k=4).counts
    share = occurrence(z, rows, z, z, k=4, own=rows)
    assert torch.equal((share * 59).round().long(), counts)


def test_false_alarms_of_the_gate_are_near_the_rate() -> None:
    refused = total = 0
    for seed in range(30):  # over calibrations, as the guarantee is
        z, _ = blobs(500, seed=seed)
        gate = HubGate.fit(z[:400], k=5, rate=0.1, seed=seed)
        refused += int((~gate.admits(z[400:])).sum())
        total += 100
    low, high = wilson(refused, total)
    assert low <= 0.1
    assert high >= 0.06, (refused, total)  # not a gate that refuses nothing
    assert HubGate.fit(z, rate=0.02).scores.shape == (250,)


def test_the_limit_is_the_conformal_place_and_the_score_the_smooth_count() -> None:
    z, _ = blobs(200)
    gate = HubGate.fit(z, k=3, rate=0.05, seed=3)
    place = math.ceil(101 * 0.95)
    assert gate.limit == pytest.approx(float(gate.scores[place - 1]))
    new = blobs(4, seed=9)[0]
    d = torch.cdist(new, gate.queries)
    by_hand = torch.sigmoid((gate.radius - d) / gate.width).mean(1)
    assert torch.allclose(gate.score(new), by_hand)
    assert gate.width == pytest.approx(0.25 * float(gate.radius.mean()))


def test_the_gate_refuses_what_is_not_finite() -> None:
    z, _ = blobs(400)
    gate = HubGate.fit(z, rate=0.05)
    assert not bool(gate.admits(torch.full((1, 8), torch.nan, dtype=torch.float64)))
    assert gate.admits(z[:0]).tolist() == []


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.0}, "rate"),
        ({"softness": 0.0}, "softness"),
        ({"rate": 0.001}, "gallery"),
        ({"k": 60}, "gallery"),
        ({"queries": torch.full((3, 8), torch.inf)}, "queries"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(change: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=argument):
        HubGate.fit(blobs(100)[0], **{"rate": 0.05, **change})


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"budget": 0.0}, "budget"),
        ({"k": 100}, "k"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, "groups"),
        ({"queries": torch.zeros(0, 8)}, "queries"),
    ],
)
def test_an_audit_that_cannot_be_is_refused(change: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=argument):
        audit_hubs(blobs(100)[0], **change)


class Unit(nn.Module):
    """Pixels as embeddings of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1), dim=1)


def images(n: int, seed: int = 0) -> RetrievalTask:
    y = torch.arange(n) % 4
    centres = torch.rand(4, 1, 3, 3, generator=stream(5, "centres"), dtype=torch.float64)
    noise = torch.rand(n, 1, 3, 3, generator=stream(seed, "images"), dtype=torch.float64)
    return retrieval_task(Unit(), 0.6 * centres[y] + 0.4 * noise, y)


def test_the_gain_by_hand() -> None:
    z = line(0, 1, 4, 6)
    task = RetrievalTask(
        encoder=lambda x: x, x=z[:1], y=torch.tensor([0]), z=z[:1],
        gallery=Gallery(z, torch.tensor([0, 0, 1, 1]), torch.arange(4)), self_index=torch.tensor([0]),
        index=torch.tensor([0]), distance=Euclidean(),
    )  # fmt: skip
    attack = HubAttack(k=1, w=2, softness=0.5)
    target = attack.aimed(task, torch.tensor([[1, 2]]))
    # Without itself and the candidate's row 0 the nearest of 1 is 4, of 4 is 6.
    assert target.radius.tolist() == [[3.0, 2.0]]
    now, width = line(2.5), 0.5 * 2.5
    sigmoid = [1 / (1 + math.exp(-(r - d) / width)) for r, d in ((3, 1.5), (2, 1.5))]
    assert float(attack.gain(now, target, task)) == pytest.approx(sum(sigmoid) / 2)
    assert attack.measure(now, target, task)["hub"].tolist() == [1.0]
    assert attack.measure(line(1.5), target, task)["hub"].tolist() == [0.5]  # 2.5 from 4: too far
    aware = replace(attack, score=lambda z: z[:, 0], limit=2.0, weight=3.0)
    assert float(aware.gain(now, target, task)) == pytest.approx(sum(sigmoid) / 2 - 3 * 0.25)
    assert float(aware.gain(line(1.5), target, task)) == pytest.approx(
        float(attack.gain(line(1.5), target, task))
    )


def test_targets_leave_the_candidate_out() -> None:
    task = images(30)
    attack = HubAttack(k=3, w=200)
    target = attack.target(task, RowStreams(0, "t", index=task.index))
    assert not bool((target.rows == task.self_index[:, None]).any())
    assert len(target.rows[0].unique()) == 29
    d = torch.cdist(task.z, task.z).fill_diagonal_(torch.inf)
    d[:, 4] = torch.inf  # what a query sees without candidate 4
    queries = target.rows[4]
    assert torch.allclose(target.radius[4], d[queries].kthvalue(3, dim=1).values, atol=1e-9)


def test_the_attack_stays_inside_and_is_never_worse_than_no_change() -> None:
    task = images(40)
    queries = images(30, seed=1).z
    threat, search = LinfThreat(eps=0.1), PGD(steps=15, alpha=0.02, keep="best")
    attack = HubAttack(k=4, w=64)
    found = attack_hubs(task, queries, search, threat, attack=attack)
    assert float(threat.size(found.x, task.x).max()) <= 0.1 + 1e-9
    assert torch.allclose(found.z, task.encoder(found.x))
    target = attack.target(task, RowStreams(0, "HUB", "target", index=task.index))
    before, after = (attack.measure(z, target, task)["hub"] for z in (task.z, found.z))
    assert bool((after >= before).all())
    assert float(after.mean()) > 1.3 * float(before.mean())
    assert float(found.after.mean()) > float(found.before.mean())  # on queries it did not see
    assert torch.allclose(found.after, occurrence(found.z, task.self_index, queries, task.gallery.z, k=4))
    still = attack_hubs(task, queries, search, LinfThreat(eps=0.0), attack=attack)
    assert torch.equal(still.after, still.before)


def test_one_who_knows_the_gate_is_refused_less_often() -> None:
    task = images(80)
    gate = HubGate.fit(task.gallery.z, k=4, rate=0.05)
    search, threat = PGD(steps=20, alpha=0.02, keep="best"), LinfThreat(eps=0.1)
    attack = HubAttack(k=4, w=128)
    unaware, aware = (
        attack_hubs(task, task.z, search, threat, own=torch.arange(80), attack=attack, gate=gate, adaptive=a)
        for a in (False, True)
    )
    assert torch.equal(unaware.admitted, gate.admits(unaware.z))
    assert torch.equal(aware.admitted, gate.admits(aware.z))
    assert int((~unaware.admitted).sum()) > int((~unaware.admitted_before).sum())  # the gate sees something
    assert int((~aware.admitted).sum()) < int((~unaware.admitted).sum())
    assert not bool((aware.admitted_before & ~aware.admitted).any())
    told = aware.to_plain(0.1)
    assert told["hubs"] == told["hubs_refused"] + told["hubs_admitted"]
    with pytest.raises(InvalidArgument, match="gate"):
        attack_hubs(task, task.z, search, threat, adaptive=True)


def test_the_attack_is_in_the_table_and_checks_its_fields() -> None:
    assert isinstance(ATTACKS["HUB"], HubAttack)
    for field, bad in (("k", 0), ("w", 1.5), ("softness", 0.0), ("weight", math.inf), ("limit", 0.0)):
        with pytest.raises(InvalidArgument, match=field):
            replace(HubAttack(), **{field: bad})
    task = images(8)
    with pytest.raises(InvalidArgument, match="k: need 1 to 6"):
        HubAttack(k=7).target(task, RowStreams(0, "t", index=task.index))


def test_vectors_are_audited_by_the_command(tmp_path: Path) -> None:
    z, _ = blobs(300)
    np.save(tmp_path / "z.npy", z.float().numpy())
    said = CliRunner().invoke(app, ["audit", str(tmp_path / "z.npy"), "--json", "--k", "5", "--rate", "0.02"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    own = audit_hubs(z.float(), k=5)
    assert found["gallery"]["largest"] == int(own.counts.max())
    assert [row["row"] for row in found["gallery"]["flagged"]] == own.flagged.tolist()
    assert found["gate"]["rate"] == 0.02
    assert found["attacks"] == {}
    text = CliRunner().invoke(app, ["audit", str(tmp_path / "z.npy"), "--k", "5"])
    assert "comes back most" in text.stdout
    refused = CliRunner().invoke(app, ["audit", str(tmp_path / "z.npy"), "--attack"])
    assert refused.exit_code != 0
    longer = z * torch.linspace(1, 9, 300)[:, None]  # lengths mean nothing to the cosine
    cosine = audit_vectors(longer.float(), k=5, distance=Cosine(), rate=0.02)
    assert torch.equal(cosine.audit.counts, audit_hubs(z.float(), k=5, distance=Cosine()).counts)
    assert audit_vectors(z[:20], k=5).gate is None  # too few rows for one percent
