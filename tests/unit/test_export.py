"""ONNX equals PyTorch for every kind of encoder; int8 is judged by attacks; the card tells records alone."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from holdfast import evaluate, recipe, train_run
from holdfast.cli.main import app
from holdfast.data import Digits
from holdfast.encoders import (
    C2F2,
    Ensemble,
    Heads,
    LeNet,
    LinearEncoder,
    LipschitzEncoder,
    ResNet18,
    SmallCNN,
    load,
)
from holdfast.errors import CorruptFile, InvalidArgument, MissingExtra, RunError
from holdfast.evaluation import compare, estimate
from holdfast.export import OnnxEncoder, export_onnx, modelcard, parity, robustness_parity
from holdfast.functional.distance import Cosine
from holdfast.results import record
from holdfast.rng import stream
from holdfast.search import NES, PGD, Square
from holdfast.threat import LinfThreat

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = SmallCNN(width=4, embedding_dim=8)
ENCODERS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "small-cnn": (SMALL, (1, 8, 8)),
    "c2f2": (C2F2(width=0.1, embedding_dim=8, mean=(0.3,), std=(0.2,)), (1, 28, 28)),
    "lenet": (LeNet(embedding_dim=8), (1, 16, 16)),
    "linear": (LinearEncoder(3), (2, 4, 5)),
    "lipschitz": (LipschitzEncoder(width=4, units=8, embedding_dim=6), (1, 9, 8)),
    "ensemble": (Ensemble(members=(SMALL, SmallCNN(width=2, embedding_dim=3))), (1, 8, 8)),
    "heads": (Heads(part=SMALL, count=2), (1, 8, 8)),
    "resnet18": (ResNet18(embedding_dim=16), (3, 64, 64)),
}
QUICKEST = {"lipschitz", "ensemble"}


def pixels(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=stream(seed, "pixels"))


def onnx_parity(name: str, tmp_path: Path) -> None:
    spec, shape = ENCODERS[name]
    encoder = spec.build(shape, seed=0)
    modes = [module.training for module in encoder.train().modules()]  # frozen batch norms stay frozen
    written = export_onnx(encoder, tmp_path, name="a run", distance=Cosine(), images=pixels(5, shape))
    assert written.path == tmp_path / "encoder.onnx"
    assert sorted(written.difference) == [1, 7, 32]
    assert max(written.difference.values()) < 2e-6
    assert [module.training for module in encoder.modules()] == modes
    assert all(p.grad is None for p in encoder.parameters())
    again = OnnxEncoder(written.path)
    x = pixels(11, shape, seed=1)
    with torch.no_grad():
        assert torch.allclose(again(x), encoder.eval()(x), rtol=0, atol=2e-6)
    assert again.shape == shape
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["embeddings"]
    assert model.opset_import[0].version == written.opset == 18
    assert again.metadata == written.metadata
    assert again.metadata["run"] == "a run"
    assert again.metadata["distance"] == "Cosine"
    assert again.metadata["input_shape"] == "x".join(map(str, shape))
    assert len(again.metadata["tensors_sha256"]) == 64
    assert str(Path(__file__).parents[2]).encode() not in written.path.read_bytes()  # paths of this machine


@pytest.mark.parametrize(
    "name",
    [name if name in QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS],
)
def test_every_kind_of_encoder_is_one_graph_that_equals_pytorch(name: str, tmp_path: Path) -> None:
    onnx_parity(name, tmp_path)


def test_a_linear_graph_by_hand(tmp_path: Path) -> None:
    """(0.9 - 0.5) / 0.2 = 2 and (0.2 - 0.5) / 0.2 = -1.5, crossed over and divided by 2.5."""
    encoder = LinearEncoder(2, normalize=True).build((1, 1, 2), seed=0)
    with torch.no_grad():
        encoder.standardize.mean.fill_(0.5)
        encoder.standardize.std.fill_(0.2)
        encoder.head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    written = export_onnx(encoder, tmp_path / "own.onnx")
    assert written.path.name == "own.onnx"
    found = OnnxEncoder(written.path)(torch.tensor([[[[0.9, 0.2]]]]))
    assert found[0].tolist() == pytest.approx([-0.6, 0.8])


class Counting(nn.Module):
    """Embeddings that depend on how often it was called."""

    shape = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1) * self.calls


class Fixed(nn.Module):
    shape = (1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4)


@pytest.mark.parametrize("encoder", [Counting(), Fixed()])
def test_a_graph_that_is_not_the_encoder_is_not_written(encoder: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="encoder"):
        export_onnx(encoder, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    encoder = SMALL.build((1, 8, 8), seed=0)
    with pytest.raises(InvalidArgument, match="opset"):
        export_onnx(encoder, tmp_path, opset=12)
    with pytest.raises(InvalidArgument, match="calibration"):
        export_onnx(encoder, tmp_path, int8=True)
    with pytest.raises(InvalidArgument, match="shape"):
        export_onnx(nn.Flatten(), tmp_path)
    with pytest.raises(RunError):
        export_onnx(tmp_path / "no-run", tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*holdfast\[onnx\]"):
        export_onnx(SMALL.build((1, 8, 8), seed=0), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    encoder = SMALL.build((1, 8, 8), seed=0)
    train = Digits().load().train.x
    return encoder, export_onnx(encoder, tmp_path_factory.mktemp("int8"), int8=True, calibration=train[:300])


def test_int8_is_near_the_float_graph_and_not_the_same(written: tuple[nn.Module, Any]) -> None:
    encoder, found = written
    x = Digits().load().test.x[:50]
    with torch.no_grad():
        exact = encoder.eval()(x)
    error = (OnnxEncoder(found.int8)(x) - exact).abs()
    assert 1e-5 < float(error.max()) < 0.05
    assert max(found.difference.values()) < 1e-6
    assert found.quantised == "static"
    assert OnnxEncoder(found.int8).metadata == {**found.metadata, "quantised": "int8, static"}
    kinds = {node.op_type for node in onnx.load(found.int8).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert [p.name for p in sorted(found.path.parent.iterdir())] == ["encoder.int8.onnx", "encoder.onnx"]


def test_the_encoder_in_onnx_is_a_callable(written: tuple[nn.Module, Any], tmp_path: Path) -> None:
    found = written[1]
    again, x = OnnxEncoder(found.path, threads=1), pixels(3, (1, 8, 8))
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert torch.equal(copied(x), again(x))
    assert again(x.double()).dtype == torch.float64
    assert again(x[:0]).shape == (0, 8)
    with pytest.raises(InvalidArgument, match=r"\(n, 1, 8, 8\)"):
        again(pixels(3, (1, 9, 8)))
    with pytest.raises(RunError, match="no such file"):
        OnnxEncoder(tmp_path / "none.onnx")
    (tmp_path / "torn.onnx").write_bytes(found.path.read_bytes()[:500])
    with pytest.raises(CorruptFile):
        OnnxEncoder(tmp_path / "torn.onnx")


def test_evaluate_attacks_it_by_queries(written: tuple[nn.Module, Any]) -> None:
    encoder, found = written
    test = Digits().load().test
    settings: dict[str, Any] = {"suite": "core", "eps": 0.1, "verdict": "off", "search": Square(queries=12)}
    x, y = test.x[:30], test.y[:30]
    one = evaluate(OnnxEncoder(found.path), x, y, **settings)
    other = evaluate(encoder, x, y, **settings)
    assert one.value("shift", "ES") == pytest.approx(other.value("shift", "ES"), abs=1e-5)
    assert one.value("shift", "ES") > 0.005


QUICK: dict[str, Any] = {
    "white_box": PGD(steps=8, alpha=0.05, keep="best"),
    "square": Square(queries=15),
    "nes": PGD(steps=2, alpha=0.05, keep="best", gradient=NES(samples=3, sigma=0.02)),
}


def test_the_same_encoder_twice_is_not_more_robust_and_a_broken_copy_less() -> None:
    test = Digits().load().test
    encoder = SMALL.build((1, 8, 8), seed=0)
    x, y = test.x[:60], test.y[:60]
    states: list[str] = []
    same = robustness_parity(
        encoder, encoder, x, y, LinfThreat(eps=0.2), **QUICK, queries=30, on_state=states.append
    )
    assert states == ["clean", "white-box transfer", "square", "nes"]
    assert list(same.rows) == [*states, "worst"]
    for a, b, c in same.rows.values():
        assert (a.value, a.n, c.difference) == (b.value, 30, 0)
    assert same.rows["worst"][0].value <= min(same.rows[name][0].value for name in states)
    assert same.rows["white-box transfer"][0].value < same.rows["clean"][0].value
    assert same.verdict.startswith("int8 is not more robust")
    assert (same.more_robust, same.masks) == (False, False)
    json.dumps(same.to_plain(), allow_nan=False)

    def broken(x: Tensor) -> Tensor:
        return torch.ones(len(x), 8)

    less = robustness_parity(encoder, broken, x, y, LinfThreat(eps=0.02), **QUICK)
    assert less.rows["clean"][1].value == 0  # ties count against it
    assert less.queries == 60
    assert not less.more_robust
    assert "less robust" in less.verdict


def test_a_copy_that_hides_its_gradient_is_told() -> None:
    rng = np.random.default_rng(0)

    def row(a: float, b: float) -> Any:
        ones = [(rng.permutation(400) < round(400 * share)).astype(float) for share in (a, b)]
        return estimate(ones[0]), estimate(ones[1]), compare(*ones)

    rows = {"clean": row(0.98, 0.97), "square": row(0.7, 0.72), "nes": row(0.8, 0.8)}
    words, more, masks = parity._verdict({**rows, parity.TRANSFER: row(0.2, 0.6), "worst": row(0.2, 0.6)})
    assert (more, masks) == (True, True)
    assert words.startswith("int8 looks more robust, which is no proof")
    assert "hidden gradients" in words
    words, more, masks = parity._verdict({**rows, parity.TRANSFER: row(0.5, 0.5), "worst": row(0.4, 0.4)})
    assert (more, masks) == (False, False)
    words, more, masks = parity._verdict({**rows, parity.TRANSFER: row(0.5, 0.5), "worst": row(0.4, 0.6)})
    assert (more, masks) == (True, False)
    assert words.startswith("int8 is more robust against these attacks")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = replace(recipe("plain"), epochs=1, encoder=SMALL, device="cpu")
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return train_run(chosen, folder).path


HOSTILE = "<img src=x onerror=alert(1)>|`a`\n# b"


def measured(folder: Path) -> list[record.Record]:
    own: dict[str, Any] = {"run": "tiny", "encoder": "small-cnn", "defense": "plain", "n": 123}
    made = [
        record.make(metric="recall@1", value=0.91357, ci=[0.9024, 0.92468], verdict="OVERESTIMATED", **own),
        record.make(
            metric="recall@1", value=0.23571, ci=[0.21, 0.26], attack="ES", state="attacked", eps=0.3,
            verdict="OVERESTIMATED", failed=["R4"], fingerprint="f00", **own,
        ),
        record.make(metric="ers", value=31.4159, attack="all", state="attacked", eps=0.3, **own),
        record.make(metric="rank", value=0.4242, attack=HOSTILE, state="attacked", eps=0.3, **own),
        record.make(
            metric="certified@0.5", value=0.777, attack="lipschitz", state="attacked", norm="l2", eps=0.5,
            suite="certified", **own,
        ),
    ]  # fmt: skip
    record.append(folder / "records.jsonl", made)
    return made


def test_the_card_says_nothing_that_was_not_recorded(run: Path, tmp_path: Path) -> None:
    unmeasured = modelcard.write(run, tmp_path / "bare").read_text()
    assert "Not evaluated" in unmeasured
    assert "model-index" not in unmeasured
    assert "nothing is known about robustness" in unmeasured
    made = measured(run)
    try:
        text = modelcard.write(run, tmp_path / "card").read_text()
    finally:
        (run / "records.jsonl").unlink()
    results = text[text.index("## Results") : text.index("## Limits")]
    known = {f"{v:.3f}" for r in made for v in (r["value"], *(r["ci"] or ()))}
    known |= {"31.4", "0.3", "0.5", "123", "95", "1", "4"}
    prose = re.sub(r"recall@1|certified@[0-9.]+|l2|f00|R4|onerror=alert\(1\)", "", results)
    assert set(re.findall(r"\d+(?:\.\d+)?", prose)) <= known
    for shown in ("0.914", "0.902 to 0.925", "0.236", "0.210 to 0.260", "31.4", "0.424", "0.777"):
        assert shown in results
    assert "- R4 (suite core, linf 0.3)" in results
    assert "OVERESTIMATED" in results
    assert "<img" not in text.replace("\\<img", "")
    assert "\n# b" not in text
    assert "Not stated" in text  # the licence
    assert load(tmp_path / "card" / "encoder.safetensors").embedding_dim == 8
    assert (tmp_path / "card" / "encoder.safetensors").read_bytes() == (
        run / "encoder.safetensors"
    ).read_bytes()
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "unknown"
    values = [m["value"] for m in front["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.91357, 0.23571]


def test_text_means_itself_in_markdown() -> None:
    assert modelcard.text("a|b\n<b>*x* `y` [z](u) &amp; $m$") == (
        "a\\|b\ufffd\\<b\\>\\*x\\* \\`y\\` \\[z\\](u) \\&amp; \\$m\\$"
    )


def test_the_command_exports_a_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.export.folder.robustness_parity", partial(robustness_parity, **QUICK))
    out = tmp_path / "model"
    said = CliRunner().invoke(
        app,
        ["export", str(run), "--out", str(out), "--int8", "--queries", "12", "--license", "mit", "--json"],
    )
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found == json.loads((out / "parity.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "encoder.int8.onnx", "encoder.onnx", "encoder.safetensors", "parity.json",
    ]  # fmt: skip
    assert max(found["onnx"]["difference"].values()) < 1e-5
    assert found["robustness"]["queries"] == 12
    card = (out / "README.md").read_text()
    assert 'license: "mit"' in card
    assert modelcard.text(found["robustness"]["verdict"]) in card
    again = OnnxEncoder(out / "encoder.onnx")
    assert again.metadata["run"] == "tiny"
    x = Digits().load().test.x[:4]
    with torch.no_grad():
        assert torch.allclose(again(x), load(out / "encoder.safetensors").eval()(x), atol=1e-6)
    refused = CliRunner().invoke(app, ["export", str(run), "--out", str(run)])
    assert isinstance(refused.exception, RunError)
