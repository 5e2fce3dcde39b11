"""Tracks: what is trained, on which images, and how it is measured; each is one command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from ..config import everywhere
from ..config import replace as replace_path
from ..encoders import C2F2
from ..recipes import recipe
from ..run_certificates import certify_run
from ..runs import RunFolder, default_search, evaluate_run
from ..search import PGD, Precision
from ..threat import L2Threat, LinfThreat
from ..training import Run, with_radius
from .published import PUBLISHED, Published

Tell = Callable[[str, int, int], None]
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A suite that every run of a track is attacked with, checked.

    Attributes
    ----------
    suite
        Name of the suite.
    queries
        So many test images, drawn with seed 0; all by default.
    norm, eps
        Of the threat; the run's own by default.
    precision
        Of the searches.
    """

    suite: str
    queries: int | None = None
    norm: str = "linf"
    eps: float | None = None
    precision: Precision = "fp32"

    def measure(self, opened: RunFolder, tell: Tell) -> None:
        """Attack a run and append the records to its folder."""
        eps = opened.run.threat.eps if self.eps is None else self.eps
        threat = L2Threat(eps=eps) if self.norm == "l2" else LinfThreat(eps=eps)
        evaluate_run(
            opened, suite=self.suite, threat=threat, search=default_search(eps, suite=self.suite),
            queries=self.queries, precision=self.precision, on_step=tell,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Certified:
    """Certificates of every run of a track: by smoothing, or by the constant of the encoder.

    Attributes
    ----------
    radii
        Where certified shares are told, in pixel units (l2).
    queries
        So many test images, drawn with seed 0.
    samples
        Noisy copies that certify a query.
    """

    radii: tuple[float, ...]
    queries: int = 100
    samples: int = 10_000

    def measure(self, opened: RunFolder, tell: Tell) -> None:
        """Certify a run and append the records to its folder."""
        certify_run(
            opened, queries=self.queries, samples=(200, self.samples), radii=self.radii, report=False,
            on_step=tell,
        )  # fmt: skip


def same(run: Run) -> Run:
    """Return the run as it is."""
    return run


@dataclass(frozen=True)
class Track:
    """Recipes that are trained on one set of images over seeds, and measured alike.

    Attributes
    ----------
    name, title
        ``"fashion-small"``, and what it is.
    setting
        Of the recipes: data, network, budget, length.
    entries
        Names of recipes, with settings that are changed: ``"act defense.search.steps=32"``.
    steps
        How each run is measured.
    adapt
        Changes every run alike: a smaller network, a shorter search. Shown in ``note``.
    note
        What to know before reading the numbers.
    published
        Rows of others to stand beside.
    """

    name: str
    _: KW_ONLY
    title: str
    setting: str
    entries: tuple[str, ...]
    steps: tuple[Attacked | Certified, ...]
    adapt: Callable[[Run], Run] = same
    note: str = ""
    published: tuple[Published, ...] = ()

    def recipe(self, entry: str, data_dir: str | None = None) -> tuple[Run, Run]:
        """Return the recipe of an entry, and its run, seed 0."""
        name, *changes = entry.split()
        usual = run = self.adapt(recipe(name, self.setting, data_dir))
        for change in changes:
            path, _, value = change.partition("=")
            run = replace_path(run, path, value)
        return usual, run


@dataclass(frozen=True)
class TableTrack:
    """Learned metrics on tables of data, certified for nearest-neighbour classification.

    Attributes
    ----------
    name, title, note
        As of :class:`Track`.
    tables
        For each table how many test points are certified; None for all.
    entries
        Names of ``holdfast certify --data ... --methods``.
    k
        Numbers of neighbours that vote.
    """

    name: str
    _: KW_ONLY
    title: str
    tables: Mapping[str, int | None]
    entries: tuple[str, ...]
    k: tuple[int, ...] = (1,)
    note: str = ""


def _bf16(run: Run) -> Run:
    return replace(run, precision="bf16")


def _wide_radius(run: Run) -> Run:
    return _bf16(with_radius(run, 0.3))


def _narrow(epochs: int) -> Callable[[Run], Run]:
    """Return what makes runs of the clustering track small: a quarter of the width, 5 steps, few epochs."""

    def small(part: Any) -> Any:
        if isinstance(part, C2F2):
            return replace(part, width=0.25 * part.width, embedding_dim=64)
        return part

    def adapt(run: Run) -> Run:
        def shorter(part: Any) -> Any:
            if isinstance(part, PGD) and part.steps > 1:  # the one step of fast training stays
                return replace(part, steps=5, alpha=1.75 * run.threat.eps / 5)
            return part

        run = replace(run, defense=everywhere(run.defense, shorter))
        if not run.name.startswith(("proxy", "eat", "ensemble", "tramer")):
            run = replace_path(run, "sampler.batch_pairs", 32)  # as the clustering line
        free = run.name == "proxy-free-at"
        return replace(
            run, encoder=everywhere(run.encoder, small), epochs=max(1, epochs // 4 if free else epochs),
            precision="bf16",
        )  # fmt: skip

    return adapt


RANKING = ("plain", "est", "act", "hm", "hm-ics", "ca-tride", "holdfast", "holdfast-robust")
"""What every ranking track trains."""
LONG = "act defense.search.steps=32"
"""As many search steps as the claim about training cost compares with."""
VARIANTS = ("hm-r-m", "hm-s-m", "hm-r-m-ics", "hm-s-m-ics", "tride", "free-at", "fast-at")
CLUSTERS = ("proxy", "proxy-at", "proxy-at-wide", "ensemble-independent", "eat")
REUSED = ("est", "act", "hm-ics", "ca-tride")
"""Defenses of ranking, to see whether they protect clusters."""
METRICS = ("euclidean", "nca", "arml", "holdfast")
SMALL = "Trained and searched in bf16, measured in float32; clean R@1 is of all test images."
CLUSTER_NOTE = (
    "Networks are C2F2 at a quarter of its width with 64 dimensions, searches of training have 5 steps of "
    "0.35 eps, batches 32 pairs; trained in bf16."
)


def _large(name: str, title: str) -> Track:
    """Return the track of a large data set, for whoever has the images and a GPU."""
    steps = (Attacked(suite="ers"), Attacked(suite="ers-robrank"), Attacked(suite="worst-case", queries=500))
    return Track(
        name, title=title, setting=name, entries=RANKING, steps=steps, published=PUBLISHED.get(name, ()),
        note="Needs the images, ImageNet weights and a GPU; not run by us.",
    )  # fmt: skip


def _omniglot(name: str, radius: str, adapt: Callable[[Run], Run]) -> Track:
    """Return the track of unseen characters at a radius."""
    steps = (
        Attacked(suite="benign"),
        Attacked(suite="ers", queries=200, precision="bf16"),
        Attacked(suite="worst-case", queries=100, precision="bf16"),
    )
    title = f"Omniglot, zero-shot, {radius}"
    return Track(name, title=title, setting="omniglot", entries=RANKING, steps=steps, adapt=adapt, note=SMALL)


def _certified(name: str, title: str, setting: str) -> Track:
    """Return the track of certificates beside attacks of the same encoders, both in l2."""
    steps = (
        Certified(radii=(0.1, 0.25, 0.5, 1.0), queries=50, samples=2_000),
        Attacked(suite="worst-case", queries=100, norm="l2", eps=0.25),
        Attacked(suite="worst-case", queries=100, norm="l2", eps=1.0),
    )
    note = "Certificates are of the smoothed encoder for noise and hold with probability 0.999 each."
    title = f"Certified Recall@1, {title}"
    return Track(name, title=title, setting=setting, entries=("noise", "lipschitz"), steps=steps, note=note)


TRACKS: Mapping[str, Track | TableTrack] = {
    track.name: track
    for track in (
        Track(
            "digits",
            title="digits, minutes on a laptop",
            setting="digits",
            entries=(*RANKING, *VARIANTS, "min-max", LONG),
            steps=(Attacked(suite="ers"), Attacked(suite="worst-case", queries=200)),
        ),
        Track(
            "fashion-small",
            title="Fashion-MNIST, small protocol of the reference runs",
            setting="fashion-small",
            entries=(*RANKING, *VARIANTS),
            steps=(
                Attacked(suite="benign"),
                Attacked(suite="ers", queries=200, precision="bf16"),
                Attacked(suite="worst-case", queries=100, eps=8 / 255, precision="bf16"),
            ),
            adapt=_bf16,
            note=SMALL,
            published=PUBLISHED["fashion-small"],
        ),
        Track(
            "fashion-full",
            title="Fashion-MNIST, published protocol",
            setting="fashion-mnist",
            entries=(*RANKING, *VARIANTS),
            steps=(
                Attacked(suite="ers"),
                Attacked(suite="ers-robrank"),
                Attacked(suite="worst-case", queries=500),
            ),
            note="60 000 images and 32 search steps: needs a GPU; not run by us.",
            published=PUBLISHED["fashion-full"],
        ),
        _omniglot("omniglot", "eps 0.1", _bf16),
        _omniglot("omniglot-wide", "eps 0.3", _wide_radius),
        Track(
            "clusters-fashion",
            title="Clustering, Fashion-MNIST, small protocol",
            setting="fashion-small",
            entries=(*CLUSTERS, "proxy-alp", *REUSED),
            steps=(Attacked(suite="clustering-worst", precision="bf16"),),
            adapt=_narrow(10),
            note=CLUSTER_NOTE,
        ),
        Track(
            "clusters-omniglot",
            title="Clustering, Omniglot, zero-shot, eps 0.1",
            setting="omniglot",
            entries=CLUSTERS,
            steps=(Attacked(suite="clustering-worst", queries=250, precision="bf16"),),
            adapt=_narrow(3),
            note=f"{CLUSTER_NOTE} Three epochs only: far from trained.",
        ),
        TableTrack(
            "certified-linear",
            title="Certified nearest neighbours",
            tables={"digits": None, "breast-cancer": None, "wine": None, "pendigits": 500, "dna": 500},
            entries=METRICS,
        ),
        TableTrack(
            "certified-fashion",
            title="Certified nearest neighbours, Fashion-MNIST",
            tables={"fashion-mnist": 300},
            entries=("euclidean", "arml"),
        ),
        _certified("certified-deep", "Fashion-MNIST, small protocol", "fashion-small"),
        _certified("certified-deep-omniglot", "Omniglot, zero-shot", "omniglot"),
        _large("cub", "CUB-200-2011"),
        _large("cars", "Cars-196"),
        _large("sop", "Stanford Online Products"),
    )
}
"""Tracks by name."""
