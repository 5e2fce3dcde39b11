"""A folder of images, from training to attacked queries, without the whole set in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.adversaries import Collapse
from holdfast.config import from_plain, to_plain
from holdfast.data import ImageFolder, ImageSet, LazyImages, PairSampler
from holdfast.data.decode import decode
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, HoldfastWarning, InvalidArgument
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.files import read_arrays, read_json
from holdfast.losses import Triplet
from holdfast.miners import Random
from holdfast.rng import stream
from holdfast.runs import allowed_types, evaluate_run, open_run, train_run
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


# --- pictures as they come ---


def closed(pictures: Path, **more: Any) -> ImageFolder:
    return ImageFolder(str(pictures), protocol="closed", resize=12, crop=10, **more)


def names_of(source: ImageFolder) -> set[str]:
    split = source.load()
    assert isinstance(split.train.x, LazyImages)
    assert isinstance(split.test.x, LazyImages)
    return {*split.train.x.names, *split.test.x.names}


def test_memory_holds_what_the_files_show(pictures: Path) -> None:
    lazy, held = closed(pictures).load(), closed(pictures, memory=True).load()
    for one, other in ((lazy.train, held.train), (lazy.test, held.test)):
        assert isinstance(other.x, torch.Tensor)
        assert torch.equal(one.x[:], other.x)
        assert torch.equal(one.y, other.y)
    again = closed(pictures, memory=True).load()
    assert again.train.fingerprint() == held.train.fingerprint()
    Image.new("RGB", (16, 20), "white").save(pictures / "class 0" / "0.png")
    assert closed(pictures, memory=True).load().train.fingerprint() != held.train.fingerprint()


def test_large_photographs_are_read_as_drafts_nearly_the_same(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(raw).resize((1200, 900), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg")
    full = decode(tmp_path / "x.jpg", 16)
    draft = decode(tmp_path / "x.jpg", 16, draft=True)
    differ = np.abs(np.asarray(full, dtype=float) - np.asarray(draft, dtype=float))
    assert 0 < differ.max() < 8
    small = Image.open(tmp_path / "x.jpg").resize((120, 90))
    small.save(tmp_path / "small.jpg")  # less than eight times as large: read whole
    whole, asked = (decode(tmp_path / "small.jpg", 16, draft=d) for d in (False, True))
    assert np.array_equal(np.asarray(whole), np.asarray(asked))


def test_a_broken_file_is_named_or_skipped_and_told(pictures: Path) -> None:
    cut = pictures / "class 1" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    split = closed(pictures).load()  # files that stay files are found out when they are used
    with pytest.raises(CorruptFile, match=r"class 1/1.jpg"):
        split.train.x[:]
    with pytest.raises(CorruptFile, match=r"class 1/1.jpg: cannot be read: .*broken='skip'"):
        closed(pictures, memory=True).load()
    for memory in (False, True):
        with pytest.warns(HoldfastWarning, match=r"1 of 24 files cannot be read and are left out: class 1/1"):
            split = closed(pictures, memory=memory, broken="skip").load()
        assert len(split.train) + len(split.test) == 23
        assert split.train.x[:].shape[1:] == (3, 10, 10)
        assert torch.bincount(split.train.y).tolist() == [3, 3, 3, 3]
        assert torch.bincount(split.test.y).tolist() == [3, 2, 3, 3]


def test_the_warning_names_a_few_of_many(pictures: Path) -> None:
    for i in range(6):
        for label in (0, 1):
            (pictures / f"class {label}" / f"broken {i}.png").write_bytes(b"")
    with pytest.warns(HoldfastWarning, match=r"12 of 36 files .*broken 4.png \(.*\); and 7 more$"):
        closed(pictures, broken="skip").load()


def test_a_class_without_readable_files_is_left_out(pictures: Path) -> None:
    for path in (pictures / "class 2").iterdir():
        path.write_bytes(b"nothing")
    with pytest.warns(HoldfastWarning, match=r"6 of 24"):
        split = closed(pictures, broken="skip").load()
    assert split.train.class_names == ("class 0", "class 1", "class 3")
    assert split.train.classes == (0, 1, 2)


def test_left_out_files_and_small_classes(pictures: Path) -> None:
    (pictures / "empty").mkdir()
    for i in range(3):
        (pictures / "class 3" / f"{i}.{'jpg' if i % 2 else 'png'}").unlink()
    out = ("class 0/0.png", "class 0/gone.png")
    names = names_of(closed(pictures, min_images=4, leave_out=out))
    assert "class 0/0.png" not in names
    assert len(names) == 17
    assert {name.partition("/")[0] for name in names} == {"class 0", "class 1", "class 2"}


def test_upright_turns_as_the_camera_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), "black")
    picture.paste("white", (0, 0, 10, 10))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    picture.save(tmp_path / "x.png", exif=exif)
    plain = LazyImages(tmp_path, ["x.png"], resize=8, crop=8)
    turned = LazyImages(tmp_path, ["x.png"], resize=8, crop=8, upright=True)
    assert plain[0][0, 4, [0, -1]].tolist() == [1, 0]
    assert turned[0][0, [0, -1], 4].tolist() == [1, 0]
    assert plain.listing() != turned.listing()
    for i, label in enumerate(("a", "b")):
        (tmp_path / label).mkdir()
        for k in range(2):
            picture.save(tmp_path / label / f"{i}{k}.png", exif=exif)
    (tmp_path / "x.png").unlink()
    for memory in (False, True):
        x = closed(tmp_path, upright=True, memory=memory).load().train.x[:]
        assert x[0, 0, [0, -1], 4].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("field", "value"), [("broken", "ignore"), ("min_images", 0), ("leave_out", "class 0/0.png")]
)
def test_settings_of_the_folder_are_checked(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=field):
        closed(Path(), **{field: value})


def test_the_new_settings_survive_a_run_folder(pictures: Path) -> None:
    source = closed(pictures, leave_out=("a/b.png",), upright=True, memory=True, broken="skip", min_images=2)
    assert from_plain(to_plain(source), allowed_types()) == source
    old = {k: v for k, v in to_plain(closed(pictures)).items() if k not in ("leave_out", "memory", "broken")}
    assert from_plain(old, allowed_types()) == closed(pictures)
