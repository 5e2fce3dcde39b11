"""The recipes of the clustering line: what they are made of, and that each trains, stops and goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast import encoders
from holdfast.adversaries import CrossEntropyClimb, DivergenceClimb, LossClimb
from holdfast.cli.options import changed
from holdfast.config import from_plain, to_plain
from holdfast.data import PairSampler
from holdfast.defenses import (
    BoostedCrossEntropy,
    CleanCrossEntropy,
    CleanLoss,
    Divergence,
    FreeTraining,
    LogitPairing,
    MisclassifiedDivergence,
    NoisyStart,
    ProxyTraining,
    StaticSources,
    WeightPerturbation,
)
from holdfast.encoders import ResNet50, SmallCNN
from holdfast.errors import InvalidArgument, RunError
from holdfast.losses import ProxyAnchor
from holdfast.recipes import RECIPES, SETTINGS, recipe
from holdfast.recipes.clustering import CLUSTERING, RAMP, SOFT
from holdfast.runs import allowed_types, train_run
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import Adam, Run, train

BASELINES = (
    "proxy", "proxy-at", "proxy-at-clean", "proxy-at-wide", "proxy-fast-at", "proxy-free-at", "proxy-mixup",
    "proxy-trades", "proxy-alp", "proxy-mart", "proxy-awp", "tramer-eat",
)  # fmt: skip
WITHOUT_SEARCH = {"proxy", "proxy-free-at", "proxy-mixup"}
EVERY = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of an encoder of digits."""
    path = tmp_path_factory.mktemp("source") / "encoder.safetensors"
    encoders.save(SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), 9), path)
    return str(path)


def short(name: str, source: str, **more: Any) -> Run:
    """Return a recipe on few digits, with a small encoder and a short search; two steps."""
    sets = ["data.train_images=40", "sampler.batch_pairs=20"]
    if name == "tramer-eat":
        sets.append(f"defense.sources={json.dumps([source])}")
    run = changed(recipe(name), {} if name in WITHOUT_SEARCH else {"steps": 2}, sets)
    return replace(run, **{"epochs": 1, "encoder": SmallCNN(width=4, embedding_dim=8), **more})


def test_the_table() -> None:
    assert set(BASELINES) <= set(CLUSTERING)
    assert all(RECIPES[name] is make for name, make in CLUSTERING.items())
    assert len(set(CLUSTERING.values())) == len(CLUSTERING)
    assert all((make.__doc__ or "").strip() for make in CLUSTERING.values())


@EVERY
@pytest.mark.parametrize("data", list(SETTINGS))
def test_constants_are_those_of_the_setting(name: str, data: str) -> None:
    run, s = recipe(name, data), SETTINGS[data]
    assert (run.name, run.data, run.optimizer) == (name, s.data(), s.proxies)
    assert run.threat == LinfThreat(eps=s.eps)
    assert run.sampler == PairSampler(32, self_pairs=s.published)
    assert run.epochs == (max(1, s.epochs // 4) if name == "proxy-free-at" else s.epochs)
    assert (run.encoder == s.encoder) == (name != "proxy-at-wide")
    defense: Any = getattr(run.defense, "part", run.defense)
    assert getattr(defense, "threat", None) in (None, run.threat)
    if isinstance(getattr(defense, "search", None), PGD) and name != "proxy-fast-at":
        assert (defense.search.steps, defense.search.alpha) == (s.steps, s.alpha)
        assert defense.search.random_start or isinstance(defense.search, NoisyStart)


def test_what_each_is_made_of() -> None:
    s, made = SETTINGS["digits"], {name: CLUSTERING[name]("digits").defense for name in BASELINES}
    attacked: Any = made["proxy-at"]
    assert made["proxy"] == ProxyTraining(loss=ProxyAnchor())
    assert attacked.adversary == LossClimb(loss=SOFT)
    assert (attacked.loss, attacked.on, attacked.extra, attacked.ramp) == (SOFT, "moved", (), RAMP)
    assert made["proxy-at-clean"] == replace(attacked, extra=(CleanLoss(),))
    assert made["proxy-at-wide"] == attacked
    assert made["proxy-awp"] == WeightPerturbation(part=attacked)
    assert made["proxy-alp"] == replace(attacked, extra=(LogitPairing(),))
    assert made["proxy-free-at"] == FreeTraining(loss=SOFT, threat=attacked.threat, replays=4)
    fast: Any = made["proxy-fast-at"]
    assert fast.search == PGD(steps=1, alpha=1.25 * s.eps, random_start=True)
    assert fast.monitor == PGD(steps=s.steps, alpha=s.alpha)
    trades: Any = made["proxy-trades"]
    assert (trades.adversary, trades.on, trades.ramp) == (DivergenceClimb(), "clean", RAMP)
    assert trades.extra == (Divergence(), CleanCrossEntropy())
    mart: Any = made["proxy-mart"]
    assert (mart.adversary, mart.loss) == (CrossEntropyClimb(), BoostedCrossEntropy())
    assert mart.extra == (MisclassifiedDivergence(),)
    assert isinstance(made["tramer-eat"], StaticSources)
    assert made["tramer-eat"].sources == ()


@pytest.mark.parametrize(
    ("data", "shape"), [("digits", (1, 8, 8)), ("fashion-small", (1, 28, 28)), ("omniglot", (1, 28, 28))]
)
def test_the_wide_encoder_has_the_parameters_of_three(data: str, shape: tuple[int, int, int]) -> None:
    counts = []
    for name in ("proxy-at", "proxy-at-wide"):
        with torch.device("meta"):
            built = recipe(name, data).encoder.build(shape, 0)
        counts.append(sum(p.numel() for p in built.parameters()))
        assert built.embedding_dim == SETTINGS[data].encoder.embedding_dim  # type: ignore[attr-defined]
    assert 2.8 < counts[1] / counts[0] < 3.2


def test_the_wide_residual_network_is_the_deepest_there_is() -> None:
    assert recipe("proxy-at-wide", "cub").encoder == ResNet50()


@EVERY
def test_settings_come_back_from_plain_data(name: str, source: str) -> None:
    for run in (recipe(name), recipe(name, "fashion-small"), short(name, source)):
        plain = json.loads(json.dumps(to_plain(run), allow_nan=False))
        assert from_plain(plain, allowed_types()) == run


@EVERY
def test_names_with_a_data_set(name: str) -> None:
    run = recipe(f"fashion-small-{name}")
    assert (run.name, run.data.name) == (name, "fashion-mnist")
    assert run == recipe(name, "fashion-small")
    assert recipe(f"cub-{name}") == recipe(name, "cub")


@EVERY
def test_two_steps(name: str, source: str) -> None:
    run = short(name, source)
    lines: list[dict[str, Any]] = []
    data = run.data.load()
    result = train(run, data, on_line=lines.append)
    assert result.steps == 2
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    start = run.encoder.build(data.train.shape, run.seed).state_dict()
    assert all(not torch.equal(v, start[k]) for k, v in result.encoder.state_dict().items() if "std" not in k
               and "mean" not in k)  # fmt: skip


@pytest.mark.parametrize("name", ["proxy-at", "proxy-free-at", "proxy-mixup", "proxy-awp", "tramer-eat"])
def test_a_stopped_run_goes_on_as_if_it_had_not(name: str, source: str, tmp_path: Path) -> None:
    run = short(name, source, epochs=2)
    whole = train_run(run, tmp_path / "whole")

    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "half", on_line=stop, checkpoint_seconds=0)
    assert not (tmp_path / "half" / "encoder.safetensors").exists()
    done = train_run(run, tmp_path / "half", resume=True)
    ours, wanted = done.encoder().state_dict(), whole.encoder().state_dict()
    assert all(torch.equal(ours[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("name", ["proxy", "proxy-trades", "proxy-mart", "proxy-awp", "proxy-mixup"])
def test_divergence_ends_the_run_with_a_reason(name: str, source: str) -> None:
    run = short(name, source, optimizer=Adam(lr=1e30), epochs=3)
    with pytest.raises(RunError, match="NaN or infinite"):
        train(run, run.data.load())


def test_sources_must_be_given(source: str, tmp_path: Path) -> None:
    run = replace(recipe("tramer-eat"), epochs=1)
    with pytest.raises(InvalidArgument, match=r"defense\.sources: need files of trained encoders"):
        train_run(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    other = changed(run, {}, [f"defense.sources={json.dumps([source, source])}"])
    assert other.defense == replace(run.defense, sources=(source, source))  # type: ignore[type-var]
    with pytest.raises(InvalidArgument, match="sources"):
        changed(run, {}, [f"defense.sources={source}"])


def test_flags_reach_the_parts_inside() -> None:
    run: Any = changed(recipe("proxy-awp"), {"steps": 4, "eps": "0.1"}, ["defense.gamma=0.01"])
    assert (run.defense.gamma, run.defense.part.search.steps) == (0.01, 4)
    assert (run.threat.eps, run.defense.part.threat.eps) == (0.1, 0.1)
    run = changed(recipe("proxy-trades"), {"steps": 4}, ["defense.extra.0.weight=3", "defense.ramp=0.4"])
    assert (run.defense.search.steps, run.defense.extra[0].weight, run.defense.ramp) == (4, 3.0, 0.4)
    assert isinstance(run.defense.search, NoisyStart)
