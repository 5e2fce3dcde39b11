"""A folder of images, from training to attacked queries, without the whole set in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.adversaries import Collapse
from holdfast.data import ImageFolder, ImageSet, LazyImages, PairSampler
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.files import read_arrays, read_json
from holdfast.losses import Triplet
from holdfast.miners import Random
from holdfast.rng import stream
from holdfast.runs import evaluate_run, open_run, train_run
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import Run, train

pytestmark = pytest.mark.integration
THREAT = LinfThreat(eps=8 / 255)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four classes of six noisy images in one colour each."""
    rng = np.random.default_rng(0)
    for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]):
        folder = tmp_path / "pictures" / f"class {label}"
        folder.mkdir(parents=True)
        for i in range(6):
            raw = np.clip(np.array(colour) + rng.normal(0, 40, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(raw).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    return tmp_path / "pictures"


def run_of(pictures: Path, epochs: int = 1) -> Run:
    adversary = {"adversary": Collapse(), "search": PGD(steps=2, alpha=4 / 255), "threat": THREAT}
    return Run(
        name="act",
        data=ImageFolder(str(pictures), resize=16, crop=12),
        defense=AdversarialTraining(loss=Triplet(margin=0.2), miner=Random(), **adversary),  # type: ignore[arg-type]
        threat=THREAT,
        encoder=SmallCNN(width=4, embedding_dim=8),
        sampler=PairSampler(batch_pairs=4, self_pairs=True),
        epochs=epochs,
        device="cpu",
    )


def weights(run: Run, **how: object) -> torch.Tensor:
    encoder = train(run, run.data.load(), **how).encoder  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def test_train_evaluate_and_show(pictures: Path, tmp_path: Path) -> None:
    opened = train_run(run_of(pictures), tmp_path / "run")
    split = opened.run.data.load()
    assert isinstance(split.test.x, LazyImages)
    stored = read_json(tmp_path / "run" / "run.json")["data_fingerprint"]
    assert stored == {"train": split.train.fingerprint(), "test": split.test.fingerprint()}
    search = PGD(steps=2, alpha=4 / 255)
    records = evaluate_run(opened, suite="core", search=search)
    assert {r["attack"] for r in records} >= {"none", "CA+", "CA-", "ES"}
    assert all(np.isfinite(r["value"]) for r in records)
    assert evaluate_run(open_run(tmp_path / "run"), suite="core", search=search) == records
    shown = read_arrays(tmp_path / "run" / "exhibits" / "ES@0.0313725.npz")
    assert shown["before_x"].shape == (12, 5, 3, 12, 12)
    moved = np.abs(shown["attacked"] - shown["query"]).max()
    assert 0 < moved <= 8 / 255 + 1e-6


def test_files_are_attacked_like_the_tensor_they_decode_to(pictures: Path) -> None:
    run = run_of(pictures)
    test = run.data.load().test
    encoder = run.encoder.build(test.shape, seed=0).eval()
    assert isinstance(test.x, LazyImages)
    outcomes = []
    for x in (test.x, test.x[:]):
        task = retrieval_task(encoder, x, test.y, batch_size=5)
        results = run_suite(task, SUITES["core"], PGD(steps=2, alpha=4 / 255), THREAT, chunk=5)
        outcomes.append(results)
    for lazy, dense in zip(*outcomes, strict=True):
        assert torch.equal(lazy.outcome.x, dense.outcome.x)
        assert torch.equal(lazy.outcome.z, dense.outcome.z)
        for name, values in lazy.outcome.attacked.items():
            assert torch.equal(values, dense.outcome.attacked[name])


def test_training_crops_by_the_streams_of_the_run(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(pictures)
    first = weights(run)
    torch.manual_seed(123)
    assert torch.equal(weights(run), first)
    seen: list[bool] = []
    plain = LazyImages.augmented

    def watched(self: LazyImages, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        expected = plain(self, rows, stream(run.seed, "augment", len(seen)))
        found = plain(self, rows, generator)
        seen.append(torch.equal(found, expected))
        return found

    monkeypatch.setattr(LazyImages, "augmented", watched)
    assert torch.equal(weights(run), first)
    assert seen == [True] * 3
    split = run.data.load()
    dense = ImageSet(split.train.x[:], split.train.y, "dense")  # a tensor is not cropped at random
    encoder = train(run, replace(split, train=dense)).encoder
    assert not torch.equal(torch.cat([p.detach().flatten() for p in encoder.parameters()]), first)


def test_resumed_training_ends_with_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    run = run_of(pictures, epochs=2)
    whole = weights(run)

    class Killed(Exception):
        pass

    def kill(line: dict[str, object]) -> None:
        if line["step"] == 4:
            raise Killed

    with pytest.raises(Killed):
        weights(run, folder=tmp_path / "run", checkpoint_seconds=0.0, on_line=kill)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert torch.equal(weights(run, folder=tmp_path / "run", resume=True), whole)
