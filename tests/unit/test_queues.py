"""Work queues: order, failures, dead workers, engines; and that nothing changes by a bit.

Tasks are functions of installed modules, for workers cannot import a test file.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from holdfast import evaluate
from holdfast.certification import certify_table
from holdfast.cli.embed import embed_command
from holdfast.cli.embed import to_embed as to_embed_folder
from holdfast.data import Digits, PairSampler, images_in
from holdfast.data.tabular import Table, load_table
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument, MissingExtra, RunError, UnknownName
from holdfast.evaluation import embed
from holdfast.evaluation.embed_parts import ToEmbed, embed_to
from holdfast.evaluation.shares import blocks, forget, here, kept
from holdfast.evaluation.vectors import open_vectors
from holdfast.queues import check, embed_in_parallel, evaluate_in_parallel, run_queue, shares, without
from holdfast.recipes import recipe
from holdfast.run_certificates import certify_run
from holdfast.runs import evaluate_run, train_run
from holdfast.search import PGD

two = partial(run_queue, jobs=2)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    forget()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, whose 297 test images make three chunks."""
    run = replace(
        recipe("plain"), encoder=SmallCNN(width=4, embedding_dim=8), epochs=1, device="cpu",
        data=Digits(train_images=1500), sampler=PairSampler(400),
    )  # fmt: skip
    return train_run(run, tmp_path_factory.mktemp("trained") / "run").path


def copied(run: Path, to: Path) -> Path:
    """Return a copy of a run folder without what was measured in it."""
    to.mkdir()
    for name in ("run.json", "encoder.safetensors"):
        (to / name).write_bytes((run / name).read_bytes())
    return to


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read every .npz below a folder, but for the seconds in it."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as file:
            found[str(path.relative_to(folder))] = {k: file[k] for k in file.files if k != "seconds"}
    return found


def same(a: Path, b: Path) -> int:
    """Compare all arrays of two folders bit by bit; return how many there are."""
    one, other = arrays(a), arrays(b)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.keys() == other[name].keys()
        for key, value in values.items():
            assert value.dtype == other[name][key].dtype
            assert value.tobytes() == other[name][key].tobytes(), (name, key)
    return sum(map(len, one.values()))


def test_results_stand_in_the_order_of_tasks_whoever_did_them() -> None:
    for jobs in (1, 2):
        seen: list[tuple[int, int]] = []
        found = run_queue(pow, [(2, i) for i in range(5)], jobs=jobs, on_done=lambda *at: seen.append(at))  # noqa: B023
        assert found == [1, 2, 4, 8, 16]
        assert seen == [(i, 5) for i in range(1, 6)]
    assert run_queue(pow, [], jobs=2) == []


def test_each_worker_has_the_threads_it_was_given() -> None:
    before = torch.get_num_threads()
    assert run_queue(torch.get_num_threads, [(), (), ()], jobs=2) == [1, 1, 1]
    assert run_queue(torch.get_num_threads, [()], jobs=1, threads=before + 2) == [before + 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_task_is_named_and_the_others_are_done(jobs: int) -> None:
    seen: list[tuple[int, int]] = []
    with pytest.raises(RunError, match=r"^task 2 of 3: ValueError: math domain error .*run the same again"):
        run_queue(math.sqrt, [(4.0,), (-1.0,), (9.0,)], jobs=jobs, on_done=lambda *at: seen.append(at))
    assert seen[-1] == (3, 3)
    with pytest.raises(RunError, match="2 of 3 tasks failed, first task 1 of 3"):
        run_queue(math.sqrt, [(-4.0,), (-1.0,), (9.0,)], jobs=jobs)


def test_errors_of_our_own_come_back_in_their_words() -> None:
    with pytest.raises(RunError, match=r"task 1 of 2: jobs: need an integer >= 1, or -1 .*, got 0"):
        run_queue(check, [(0,), (1,)], jobs=2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"jobs": 0}, InvalidArgument, "jobs"),
        ({"jobs": -2}, InvalidArgument, "jobs"),
        ({"jobs": True}, InvalidArgument, "jobs"),
        ({"jobs": 2, "threads": 0}, InvalidArgument, "threads"),
        ({"jobs": 2, "backend": "dusk"}, UnknownName, "dask"),
        ({"jobs": 2, "scheduler": "tcp://host:1"}, InvalidArgument, "scheduler"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_queue(pow, [(1, 1), (1, 2)], **settings)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_engine_is_said_to_be_missing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    monkeypatch.setitem(sys.modules, f"{backend}.distributed", None)
    with pytest.raises(MissingExtra, match=backend):
        check(2, backend)


def test_shares_and_blocks() -> None:
    assert shares(2) == 8  # several for each process
    assert shares(2, 60.0) == 2  # each would spend the whole budget
    assert blocks(0, 3) == []
    assert blocks(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert check(-1) >= 1
    words = ["evaluate", "r", "--jobs=3", "--json", "--backend", "dask", "--eps", "0.1"]
    assert without(words, "--jobs", "--backend", "--json") == ["evaluate", "r", "--eps", "0.1"]


def test_what_is_kept_is_made_once_and_only_the_last_one_is_kept() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for name in ("a", "a", "b", "b", "a"):
        assert kept(name, lambda: make(name)) == name  # noqa: B023
    assert made == ["a", "b", "a"]


def test_a_run_evaluated_by_two_processes_has_the_same_chunks(trained: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"suite": "core", "search": PGD(steps=2, alpha=0.02), "verdict": "off"}
    one, other = (copied(trained, tmp_path / name) for name in ("one", "other"))
    records = evaluate_run(one, **settings)
    seen: list[tuple[int, int]] = []
    again = evaluate_in_parallel(
        evaluate_run, other, jobs=2, on_done=lambda *at: seen.append(at), on_chunk=lambda *_: None, **settings
    )
    files = [path.name for path in other.rglob("*-00000256-00000297.npz")]
    assert files  # the third chunk
    assert same(one, other) > 10
    assert seen[-1] == (8, 8)
    for a, b in zip(records, again, strict=True):
        assert all(a[key] == b[key] for key in ("attack", "state", "metric", "value", "ci"))


def test_an_encoder_in_memory_is_evaluated_by_two_processes(tmp_path: Path) -> None:
    x, y = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4
    encoder = SmallCNN(width=4, embedding_dim=4).build((1, 8, 8), 0)
    settings: dict[str, Any] = {
        "suite": "core", "eps": 0.1, "verdict": "off", "chunk": 8, "search": PGD(steps=2, alpha=0.05),
        "device": "cpu",
    }  # fmt: skip
    evaluate(encoder, x, y, out=tmp_path / "one", **settings)
    card = evaluate_in_parallel(evaluate, encoder, x, y, out=tmp_path / "other", jobs=2, **settings)
    assert card.queries == 24
    assert same(tmp_path / "one", tmp_path / "other") > 10


def test_evaluations_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="out"):
        evaluate_in_parallel(evaluate, None, None, jobs=2)
    with pytest.raises(InvalidArgument, match="share"):
        evaluate_in_parallel(pow, 1, 2, jobs=2)
    with pytest.raises(InvalidArgument, match="share"):
        evaluate_in_parallel(evaluate, None, None, jobs=2, shard=(0, 2), out=tmp_path)
    with pytest.raises(RunError, match=r"8 of 8 tasks failed, first task 1 of 8: .*no run\.json"):
        evaluate_in_parallel(evaluate_run, tmp_path, jobs=2)


def tabled() -> Table:
    table = load_table("wine")
    rows = np.arange(0, 54, 3)
    return replace(table, x_test=table.x_test[rows], y_test=table.y_test[rows])


def flat(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return a metric that sees three directions, so that points are turned before they are compared."""
    rows = np.random.default_rng(seed).normal(size=(3, x.shape[1]))
    return rows.T @ rows


@pytest.mark.parametrize("how", [{"method": "bound"}, {"attack": True, "method": "bound"}, {}])
def test_certificates_of_a_table_are_equal_to_the_bit(tmp_path: Path, how: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"k": (1, 3), "report": False, **how}
    one = certify_table(tabled(), {"flat": flat}, out=tmp_path / "one", **settings)
    other = certify_table(tabled(), {"flat": flat}, out=tmp_path / "other", spread=two, **settings)
    assert same(tmp_path / "one", tmp_path / "other") >= 10
    assert len(one.measured) == len(other.measured) == 2
    assert all(m.seconds > 0 for m in other.measured)
    c = other.measured[0].certificate
    assert bool(c.correct.any())
    assert (c.upper is not None) == bool(how.get("attack") or not how)


def test_parts_of_a_table_certify_what_the_whole_does(tmp_path: Path) -> None:
    from holdfast.linear import RobustKNeighborsClassifier

    table = tabled()
    found = certify_table(table, ["euclidean"], (3,), out=tmp_path / "o", report=False, spread=two)
    knn = RobustKNeighborsClassifier(n_neighbors=3).fit(table.x_train, table.y_train)
    whole = knn.certify(table.x_test, table.y_test)
    mine = found.measured[0].certificate
    torch.testing.assert_close(mine.radius, whole.radius, rtol=1e-9, atol=1e-12)
    assert torch.equal(mine.correct, whole.correct)
    assert whole.answer is not None
    assert mine.answer is not None
    assert torch.equal(mine.answer, whole.answer)


FEW: dict[str, Any] = {"by": "votes", "sigma": 0.2, "samples": (10, 50), "queries": 5, "report": False}


class Stops:
    """A queue that does some tasks and then breaks down."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, -1

    def __call__(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], /, **more: Any
    ) -> list[Any]:
        self.asked = len(tasks)
        here(function, tasks[: self.after], **more)
        if len(tasks) > self.after:
            raise RunError("lost")
        return []


def test_certificates_of_a_run_are_equal_to_the_bit_and_resumed(trained: Path, tmp_path: Path) -> None:
    one, other = (copied(trained, tmp_path / name) for name in ("one", "other"))
    a = certify_run(one, **FEW)
    words: list[tuple[int, int]] = []
    b = certify_run(other, spread=two, on_step=lambda _, done, of: words.append((done, of)), **FEW)
    assert same(one / "certificates", other / "certificates") >= 5
    assert torch.equal(a.certificate.radius, b.certificate.radius)
    assert [r["value"] for r in a.records] == [r["value"] for r in b.records]
    assert words == [(i, 5) for i in range(6)]
    assert len(list((other / "certificates").iterdir())) == 1

    third = copied(trained, tmp_path / "third")
    with pytest.raises(RunError, match="lost"):
        certify_run(third, spread=Stops(2), **FEW)
    assert len(list(third.glob("certificates/*.block-*.npz"))) == 2
    rest = Stops(9)
    certify_run(third, spread=rest, **FEW)
    assert rest.asked == 3
    assert same(one / "certificates", third / "certificates") >= 5

    fourth = copied(trained, tmp_path / "fourth")  # begun by a queue, ended without one
    with pytest.raises(RunError, match="lost"):
        certify_run(fourth, spread=Stops(4), **FEW)
    certify_run(fourth, **FEW)
    assert same(one / "certificates", fourth / "certificates") >= 5


def to_embed(n: int) -> ToEmbed:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ToEmbed(SmallCNN(width=4, embedding_dim=4).build((1, 8, 8), 0), x, torch.arange(n) % 3)


def test_vectors_are_written_part_by_part_and_resumed(tmp_path: Path) -> None:
    n, size = 70, 2  # two whole tasks of 32 images, and 6 images
    encoder, x, y = to_embed(n)
    with pytest.raises(RunError, match="lost"):
        embed_to(tmp_path / "v", to_embed, (n,), key="k", batch_size=size, spread=Stops(1))
    assert not (tmp_path / "v").exists()
    with pytest.raises(RunError, match="another encoder"):
        embed_to(tmp_path / "v", to_embed, (n,), key="other", batch_size=size)
    rest = Stops(9)
    embed_to(tmp_path / "v", to_embed, (n,), key="k", batch_size=size, spread=rest)
    assert rest.asked == 2
    found = open_vectors(tmp_path / "v")
    assert torch.equal(found.z, embed(encoder, x, size))
    assert found.y is not None
    assert torch.equal(found.y, y)
    assert not (tmp_path / "v.parts").exists()
    with pytest.raises(RunError, match="exists"):
        embed_to(tmp_path / "v", to_embed, (n,), key="k")
    with pytest.raises(InvalidArgument, match="batch_size"):
        embed_to(tmp_path / "w", to_embed, (n,), key="k", batch_size=0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures of 8 x 8 pixels in two classes."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for i, pixels in enumerate(rows):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def test_two_processes_embed_a_folder_as_one_does(pictures: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"key": "flat", "batch_size": 1}
    what = (to_embed_folder, "torch.nn:Flatten", str(pictures), 8, "cpu")
    for name, jobs in (("one", 1), ("two", 2)):
        embed_in_parallel(*what, out=tmp_path / name, jobs=jobs, **settings)
    one, two = (open_vectors(tmp_path / name) for name in ("one", "two"))
    assert one.z.shape == (40, 192)
    assert (one.z == images_in(pictures, 8).x[:].flatten(1)).all()
    assert one.fingerprint == two.fingerprint
    assert one.y is not None
    assert one.y.tolist() == [0] * 20 + [1] * 20


def test_the_command_that_embeds(pictures: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(embed_command)
    words = ["torch.nn:Flatten", "--images", str(pictures), "--size", "8", "--out", str(tmp_path / "v")]
    said = CliRunner().invoke(app, [*words, "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["images"] == 40
    assert isinstance(CliRunner().invoke(app, words).exception, RunError)  # it exists
    gone = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "w"), "--jobs", "0"])
    assert isinstance(gone.exception, InvalidArgument)
    small = CliRunner().invoke(app, ["torch.nn:LazyBatchNorm1d", *words[1:-1], str(tmp_path / "w")])
    assert isinstance(small.exception, InvalidArgument)
    assert not (tmp_path / "w").exists()


def test_dask_workers_do_the_same() -> None:
    distributed = pytest.importorskip("dask.distributed")
    settings = {"processes": False, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **settings) as cluster:
        queue = partial(run_queue, jobs=2, backend="dask", scheduler=cluster.scheduler_address)
        seen: list[tuple[int, int]] = []
        assert queue(pow, [(2, i) for i in range(4)], on_done=lambda *at: seen.append(at)) == [1, 2, 4, 8]
        assert seen == [(i, 4) for i in range(1, 5)]
        with pytest.raises(RunError, match="task 2 of 2: ValueError: math domain error"):
            queue(math.sqrt, [(1.0,), (-1.0,)])


def test_ray_workers_do_the_same() -> None:
    pytest.importorskip("ray")
    assert run_queue(pow, [(2, i) for i in range(4)], jobs=2, backend="ray") == [1, 2, 4, 8]


def test_a_killed_worker_ends_the_queue_with_advice() -> None:  # the last one, for it costs the processes
    with pytest.raises(RunError, match=r"a worker of the queue .*lost .*run the same again"):
        two(signal.raise_signal, [(signal.SIGCONT,), (signal.SIGKILL,), (signal.SIGCONT,)])
