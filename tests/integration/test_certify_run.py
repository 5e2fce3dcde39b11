"""``holdfast certify RUN``: each way to certify, resuming, the report, the verdict, attacks, bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast import run_certificates
from holdfast.certify import (
    Certificate,
    SmoothedEncoder,
    Smoothing,
    certify_lipschitz,
    certify_recall,
    certify_votes,
)
from holdfast.data import Digits, PairSampler
from holdfast.defenses import Mixture
from holdfast.encoders import LipschitzEncoder, SmallCNN
from holdfast.errors import InvalidArgument, RunError, UnknownName
from holdfast.evaluation import Share, query_certificates, retrieval_task
from holdfast.evaluation.card import sample
from holdfast.evaluation.query_certificates import first_label
from holdfast.evaluation.verdict import falsify
from holdfast.files import read_arrays, read_json
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.recipes import recipe
from holdfast.report import write_report
from holdfast.results import record
from holdfast.run_certificates import certify_run, trained_sigma
from holdfast.runs import evaluate_run, open_run, train_run
from holdfast.search import PGD
from holdfast.threat import L2Threat
from holdfast.types import Gallery, RetrievalTask

pytestmark = pytest.mark.integration
Call = Callable[..., tuple[int, str, str]]
N = 97
SMALL: dict[str, Any] = {"data": Digits(train_images=1700), "sampler": PairSampler(100), "device": "cpu"}
FEW: dict[str, Any] = {"samples": (20, 200), "queries": 6, "report": False}
ENCODER = SmallCNN(width=4, embedding_dim=8)
THREAT, SEARCH = L2Threat(eps=0.2), PGD(steps=2, alpha=0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("trained")
    noise = replace(recipe("noise"), encoder=ENCODER, epochs=3, **SMALL)
    wide = LipschitzEncoder(width=8, depth=0, units=32, hidden=0, embedding_dim=32)
    proven = replace(recipe("lipschitz"), encoder=wide, epochs=1, threat=THREAT, **SMALL)
    return {name: train_run(run, at / name).path for name, run in (("noise", noise), ("proven", proven))}


@pytest.fixture
def noise(trained: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained["noise"], tmp_path / "noise"))


@pytest.fixture
def proven(trained: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained["proven"], tmp_path / "proven"))


def task_of(folder: Path) -> RetrievalTask:
    opened = open_run(folder)
    test = opened.run.data.load().test
    return retrieval_task(opened.encoder(), test.x, test.y, opened.run.distance)


def same(a: Certificate, b: Certificate) -> bool:
    return torch.equal(a.radius, b.radius) and torch.equal(a.correct, b.correct)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed again")


# --- Each way ---


def test_a_proven_constant_certifies_every_query(proven: Path) -> None:
    found = certify_run(proven, report=False)
    task = task_of(proven)
    assert found.label == "lipschitz"
    assert found.rows.tolist() == list(range(N))
    encoder: Any = task.encoder
    assert same(found.certificate, certify_lipschitz(encoder, task.x, task.y, dtype=torch.float32))
    assert found.certificate.alpha == 0
    assert found.certificate.accuracy_at(0.05) > 0.5
    d = torch.cdist(task.z, task.z).fill_diagonal_(torch.inf)
    right = task.y[d.argmin(1)] == task.y
    assert torch.equal(found.clean, right)
    row = found.row
    assert (row["n"], row["of"], row["noise"], row["k"]) == (N, N, None, 1)
    assert row["clean_error"]["value"] == pytest.approx(1 - float(right.double().mean()))
    assert read_arrays(proven / row["files"][0])["radius"].tolist() == found.certificate.radius.tolist()


def test_smoothing_certifies_a_sample_with_the_noise_of_training(noise: Path) -> None:
    found = certify_run(noise, **FEW)
    assert found.label == "smoothing, sigma 0.25"
    task = task_of(noise)
    part = sample(task, 6, 0)
    assert torch.equal(found.rows, part.index)
    own = Smoothing(sigma=0.25, n_select=20, n_certify=200)
    assert same(found.certificate, certify_recall(part, own))
    assert found.certificate.alpha == found.row["alpha"] == 1e-3
    assert (found.row["n"], found.row["of"]) == (6, N)
    three = certify_run(noise, k=3, **FEW)
    assert three.certificate.radius.mean() > found.certificate.radius.mean()
    assert [(r["method"], r["k"]) for r in three.meta["rows"]] == [(found.label, 1), (found.label, 3)]


def test_votes_are_those_for_the_label_of_the_nearest_other_row(noise: Path) -> None:
    found = certify_run(noise, by="votes", sigma=0.1, **FEW)
    assert found.label == "votes, sigma 0.1"
    task, radii = task_of(noise), []
    for i in found.rows.tolist():
        others = torch.arange(N) != i

        def answer(x: Tensor, others: Tensor = others) -> Tensor:
            return task.y[others][torch.cdist(task.encoder(x), task.z[others]).argmin(1)]

        own = Smoothing(sigma=0.1, n_select=20, n_certify=200)
        radii.append(certify_votes(answer, task.x[i : i + 1], own, y=task.y[i : i + 1], index=[i]).radius)
    assert torch.equal(found.certificate.radius, torch.cat(radii))
    assert float(found.certificate.radius.max()) > 0.1


def test_the_query_is_left_out_by_index_and_not_by_distance() -> None:
    z = torch.tensor([[0.0], [0.0], [1.0]])  # a twin of another class stands where the query does
    y = torch.tensor([0, 1, 0])
    task = RetrievalTask(
        encoder=lambda x: x, x=z, y=y, z=z, gallery=Gallery(z, y, torch.arange(3)), distance=Euclidean(),
        self_index=torch.tensor([0, 1, -1]), index=torch.arange(3),
    )  # fmt: skip
    copies = torch.tensor([[0.0], [0.9]])
    assert first_label(task.rows(slice(0, 1)))(copies).tolist() == [1, 0]
    assert first_label(task.rows(slice(1, 2)))(copies).tolist() == [0, 0]
    assert first_label(task.rows(slice(2, 3)))(copies).tolist() == [0, 0]


def test_auto_takes_the_first_way_that_the_encoder_allows(noise: Path, proven: Path) -> None:
    cosine = replace(open_run(proven), run=replace(open_run(proven).run, distance=Cosine()))
    assert certify_run(cosine, **FEW).label == "votes, sigma 0.25"  # proven for Euclidean distances alone
    with pytest.raises(InvalidArgument, match="lipschitz needs a Euclidean distance"):
        certify_run(cosine, by="lipschitz", **FEW)


def test_trained_sigma_is_found_inside_other_defenses() -> None:
    inner, plain = recipe("noise").defense, recipe("plain").defense
    assert trained_sigma(inner) == 0.25
    assert trained_sigma(plain) == 0.0
    assert trained_sigma(Mixture(parts=(plain, replace(inner, sigma=0.5)))) == 0.5  # type: ignore[type-var]
    assert trained_sigma(replace(inner, part=replace(inner, sigma=0.5))) == 0.5  # type: ignore[type-var]


# --- What is kept ---


def test_certifications_of_a_run_add_up_in_json_and_records(noise: Path) -> None:
    first = certify_run(noise, radii=[0.2, 0.1], **FEW)
    certify_run(noise, by="votes", **FEW)
    certify_run(noise, sigma=0.1, **FEW)
    last = certify_run(noise, radii=[0.1, 0.2], **{**FEW, "samples": (20, 300)})  # the first's label again
    labels = [row["method"] for row in last.meta["rows"]]
    assert labels == ["votes, sigma 0.25", "smoothing, sigma 0.1", "smoothing, sigma 0.25"]
    assert last.meta["radii"] == [0.1, 0.2]
    assert all(len(row["certified_error"]) == 2 for row in last.meta["rows"])
    assert read_json(noise / "certify.json") == last.meta
    assert len(list((noise / "certificates").glob("*.npz"))) == 4

    kept = record.read(noise / "records.jsonl")
    assert len({(r["fingerprint"], r["metric"]) for r in kept}) == len(kept)
    fields = {(r["run"], r["suite"], r["norm"], r["verdict"], r["defense"], r["encoder"]) for r in kept}
    assert fields == {("noise", "certified", "l2", "UNCHECKED", "noise", "small-cnn")}
    at = {r["metric"]: r for r in first.records}
    assert set(at) == {"certified@0.1", "certified@0.2", "certified-median"}
    held = first.certificate.accuracy_at(0.1)
    assert (at["certified@0.1"]["value"], at["certified@0.1"]["eps"], at["certified@0.1"]["n"]) == (
        held,
        0.1,
        6,
    )
    assert len({r["attack"] for r in record.latest(kept) if r["metric"] == "certified@0.1"}) == 3

    (noise / "certificates" / Path(last.meta["rows"][0]["files"][0]).name).write_bytes(b"torn")
    again = certify_run(noise, **FEW)
    assert [row["method"] for row in again.meta["rows"]] == labels[1:]  # what cannot be read is left out


def test_what_was_certified_is_read_back(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = certify_run(noise, attack=True, **FEW)
    for name in ("certify_recall", "certify_votes", "certify_lipschitz"):
        monkeypatch.setattr(query_certificates, name, never)
    monkeypatch.setattr(run_certificates, "falsify", never)
    again = certify_run(noise, attack=True, **FEW)
    assert same(again.certificate, found.certificate)
    assert torch.equal(again.clean, found.clean)
    assert {**again.meta, "command": ""} == {**found.meta, "command": ""}
    assert certify_run(noise, **FEW).row["attacked"] == found.row["attacked"]  # kept, though not asked for
    with pytest.raises(AssertionError, match="computed again"):
        certify_run(noise, seed=1, **FEW)


def test_a_stopped_call_goes_on_and_time_is_told_after_the_first_query(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_certificates, "KEEP_EVERY", 0.0)
    told: list[str] = []

    def stop(words: str, done: int, total: int) -> None:
        told.append(words)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify_run(noise, on_step=stop, **FEW)
    assert told[0] == "smoothing, sigma 0.25: 6 queries of 97, a random sample"
    assert re.fullmatch(r"smoothing, sigma 0.25: 1 of 6 queries, [\d.e-]+ s each, \d+ s left", told[1])
    assert not (noise / "certify.json").exists()
    assert len(list(noise.glob("certificates/*.part.npz"))) == 1

    seen: list[int] = []
    whole = certify_recall(sample(task_of(noise), 6, 0), Smoothing(sigma=0.25, n_select=20, n_certify=200))

    def watched(query: RetrievalTask, smoothing: Smoothing, *, k: int = 1) -> Certificate:
        seen.append(int(query.index))
        return certify_recall(query, smoothing, k=k)

    monkeypatch.setattr(query_certificates, "certify_recall", watched)
    found = certify_run(noise, **FEW)
    assert seen == found.rows[4:].tolist()
    assert same(found.certificate, whole)
    assert not list(noise.glob("certificates/*.part.npz"))


# --- Attacks and the verdict ---


def test_attacks_break_nothing_inside_the_radii_and_find_radii_that_are_too_large(
    noise: Path, proven: Path
) -> None:
    found = certify_run(proven, attack=True, report=False)
    assert found.attacked is not None
    assert (found.attacked.broken, found.attacked.allowed) == (0, 0)
    assert found.attacked.tried == int((found.certificate.radius > 0).sum()) > N // 2
    task = task_of(proven)
    bold = replace(found.certificate, radius=found.certificate.radius + 2)
    broken = falsify(bold, task)
    assert not broken.holds
    assert broken.broken == len(broken.rows) > N // 2
    assert broken.words().startswith(f"attacks broke {broken.broken} of {broken.tried}")
    assert falsify(replace(bold, correct=torch.zeros(N, dtype=torch.bool)), task).tried == 0

    soft = certify_run(noise, attack=True, **FEW)
    assert soft.attacked is not None
    assert soft.attacked.holds
    assert soft.attacked.tried > 0
    part = sample(task_of(noise), 6, 0)
    bold = replace(soft.certificate, radius=soft.certificate.radius + 2)
    smoothed = SmoothedEncoder(part.encoder, 0.25, samples=4)
    assert not falsify(bold, part, smoothed, bounds=None, copies=500).holds
    assert falsify(replace(bold, alpha=0.999), part, smoothed, bounds=None, copies=100).holds


@pytest.mark.parametrize(
    ("change", "message"), [({"norm": 1.0}, "certificate: need l2 radii"), ({}, "a radius for each of 2")]
)
def test_falsify_refuses_other_certificates(change: dict[str, Any], message: str, proven: Path) -> None:
    made = Certificate(radius=torch.ones(3 - len(change)), correct=torch.ones(3 - len(change)), **change)
    with pytest.raises(InvalidArgument, match=message):
        falsify(made, task_of(proven).rows(slice(0, 2)))


def test_evaluations_of_proven_encoders_check_the_certificate(
    noise: Path, proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(folder: Path) -> dict[str, str]:
        (path,) = folder.glob("evaluations/*/verdict.json")
        return {f["id"]: f["status"] for f in read_json(path)["findings"]}

    settings: dict[str, Any] = {"threat": THREAT, "search": SEARCH, "queries": 40, "device": "cpu"}
    evaluate_run(proven, **settings)
    found = checks(proven)
    assert (found["R26"], found["R27"]) == ("pass", "pass")
    monkeypatch.setattr("holdfast.runs.certify_task", never)
    evaluate_run(noise, **settings)
    assert {"R26", "R27"} & {k for k, status in checks(noise).items() if status != "skipped"} == set()
    evaluate_run(proven, verdict="off", **{**settings, "queries": 20})
    evaluate_run(proven, share=Share(seconds=60.0), **{**settings, "queries": 30})


# --- The report and the command ---


def test_the_report_shows_the_usual_sections_and_what_is_certified(proven: Path) -> None:
    evaluate_run(proven, threat=THREAT, search=SEARCH, queries=20, verdict="off", device="cpu")
    before = write_report([proven], proven / "before.html").read_text()
    found = certify_run(proven, attack=True, radii=[0.1, 0.3])
    assert found.report == proven / "report.html"
    certify_run(proven, by="votes", sigma=0.5, radii=[0.1, 0.3], **{**FEW, "report": True})
    text = (proven / "report.html").read_text()
    heads = re.findall("<h2>(.*?)</h2>", text)
    assert heads == [*re.findall("<h2>(.*?)</h2>", before)[:4], "What is certified?", *heads[5:]]
    assert heads[5:] == re.findall("<h2>(.*?)</h2>", before)[4:]
    parts = re.split(r"<h2>(.*?)</h2>", text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    old = re.split(r"<h2>(.*?)</h2>", before)
    for name, body in zip(old[1::2], old[2::2], strict=True):  # records of certificates change no section
        assert sections[name].split("</section>")[0] == body.split("</section>")[0], name
    section = sections["What is certified?"].split("</section>")[0]
    plain = re.sub(r"<[^>]*>", " ", section)
    assert "the first place of its search results" in plain
    assert "the radius is too large with at most that probability" in plain
    row = found.row
    share = f"{100 * (1 - row['certified_error'][0]['value']):.1f}"
    cells = re.findall(r"<tr>.*?Lipschitz constant</th>(.*?)</tr>", section)[0]
    assert re.findall(r"<td>(.*?)</td>", cells)[:3] == [str(N), "–", "0"]
    assert f"<td>{share}</td>" in cells
    assert "6 of 97" in plain
    tried = found.row["attacked"]["tried"]
    assert (
        f"an attack inside the radii of {tried} certified queries broke 0, as it must be (none may" in plain
    )
    assert "<svg" in section
    assert "classifier" not in plain


def test_the_command_prints_tables_json_and_the_report(holdfast: Call, noise: Path) -> None:
    words = ("certify", noise, "--samples", 200, "--queries", 5, "--threads", 1, "--radii", "0.05,0.1")
    code, text, err = holdfast(*words, "--attack")
    assert code == 0, err
    assert err == ""  # over in seconds, so nothing is told of it
    cells = next(re.split(r"\s*│\s*", line)[1:-1] for line in text.splitlines() if "smoothing, sigma" in line)
    assert cells[:2] == ["smoothing, sigma 0.25", "5 of 97"]
    assert cells[6] == "0.001"
    assert "certified queries inside their radius" in text
    assert str(noise / "report.html") in text
    code, out, err = holdfast(*words, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["certified"]["n"] == 5
    assert cells[3] == f"{100 * (1 - found['certified']['certified_error'][0]['value']):.1f}"
    assert {r["metric"] for r in found["records"]} >= {"certified@0.05", "certified@0.1"}
    code, text, _ = holdfast(*words, "--by", "votes", "--attack", "--no-report")
    assert code == 0
    assert "not attacked, because votes have no gradient" in text
    assert "report:" not in text


# --- Bad input ---


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"by": "vote"}, UnknownName, "did you mean votes"),
        ({"by": "lipschitz"}, InvalidArgument, "lipschitz needs an encoder with a proven Lipschitz constant"),
        ({"by": "votes", "k": 2}, InvalidArgument, "k: need 1 for votes"),
        ({"k": 0}, InvalidArgument, "k: need an integer >= 1"),
        ({"sigma": 0.0}, InvalidArgument, "sigma: need a finite number > 0"),
        ({"sigma": float("nan")}, InvalidArgument, "sigma: need a finite number > 0"),
        ({"samples": (20, 0)}, InvalidArgument, "n_certify: need an integer >= 1"),
        ({"alpha": 0.0}, InvalidArgument, "alpha: need a probability"),
        ({"queries": 0}, InvalidArgument, "queries: need an integer >= 1"),
        ({"radii": []}, InvalidArgument, "radii: need finite numbers > 0"),
        ({"radii": [-1.0]}, InvalidArgument, "radii: need finite numbers > 0"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    noise: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        certify_run(noise, **{**FEW, **change})
    assert not (noise / "certify.json").exists()
    assert not (noise / "certificates").exists()


def test_what_an_encoder_does_not_allow_is_refused(proven: Path) -> None:
    with pytest.raises(InvalidArgument, match="smoothing needs a normalised encoder"):
        certify_run(proven, by="smoothing", **FEW)
    with pytest.raises(InvalidArgument, match="sigma: need a certificate by smoothing or votes"):
        certify_run(proven, sigma=0.1, **FEW)


def test_folders_that_are_no_finished_run_are_refused(noise: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        certify_run(tmp_path / "nothing")
    (noise / "certify.json").write_text('{"schema": 1, "rows": []}')
    with pytest.raises(RunError, match="holds certificates of something else"):
        certify_run(noise, **FEW)
    (noise / "encoder.safetensors").unlink()
    with pytest.raises(RunError, match="training is not finished"):
        certify_run(noise, **FEW)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "wine"), "data: need a run folder or --data, not both"),
        (("--methods", "nca"), "methods: need --data instead of a run folder"),
        (("--n-test", "5"), "n-test: need --data instead of a run folder"),
        (("--k", "1,3"), "k: need one whole number for a run folder"),
    ],
)
def test_options_of_the_other_form_are_refused(
    holdfast: Call, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = holdfast("certify", tmp_path, *words)
    assert code == 2
    assert message in err
    code, _, err = holdfast("certify", "--data", "wine", "--sigma", "0.1")
    assert code == 2
    assert "sigma: need a run folder instead of --data" in err
