"""What the four papers claim, and what the records of ``results/`` say about it.

The claims are told in our words. Every figure is read from records, and every answer follows from figures by
a rule that is written here, so new records can change it. ``python benchmarks/pages.py`` writes the page.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.evaluation.paired import compare_seeds
from holdfast.leaderboard import Board, Row

RESULTS = Path(__file__).with_name("results")
YES, PARTLY, NO = "confirmed", "partly", "not confirmed here"
OPEN = "open: too few seeds yet"
Of = Callable[..., list[Board]]


@dataclass(frozen=True)
class Claim:
    """One claim: whose, what, our answer, the figures, and the command that gives them again."""

    source: str
    words: str
    answer: str
    figures: str
    command: str


def table(of: Of) -> str:
    """Return all claims as Markdown."""
    lines = ["| claim | answer | what we found | command |", "|---|---|---|---|"]
    for claim in claims(of):
        words = f"**{claim.source}**: {claim.words}"
        lines.append(f"| {words} | **{claim.answer}** | {claim.figures} | `{claim.command}` |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Figures:
    """Rows of one board by recipe."""

    board: Board

    def row(self, recipe: str) -> Row:
        """Return a row; a missing one is an error, as the page would lie."""
        return next(row for row in self.board.rows if row.recipe == recipe)

    def values(self, recipe: str, measure: str) -> tuple[float, ...]:
        """Return a measure over seeds."""
        return self.row(recipe).values[measure]

    def text(self, recipe: str, *measures: str, digits: int = 1) -> str:
        """Return means and standard deviations."""
        told = []
        for measure in measures:
            values = self.values(recipe, measure)
            alone = "" if self.board.terms.kind == "neighbours" else " (one seed)"  # most have no seed there
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else alone
            told.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        return " / ".join(told)

    def higher(self, a: str, b: str, measure: str) -> str:
        """Tell whether a lies above b by more than the noise of training, within it, or below."""
        return _higher(self.values(a, measure), self.values(b, measure))


def _higher(a: Sequence[float], b: Sequence[float]) -> str:
    found = compare_seeds(b, a)  # the difference is the second minus the first
    return (
        "few"
        if not found.enough
        else "noise"
        if not found.supported
        else "higher"
        if found.difference > 0
        else "lower"
    )


def answer(words: Sequence[str], *, everywhere: bool = True) -> str:
    """Turn comparisons into a word: higher everywhere, or higher somewhere and lower nowhere."""
    if "few" in words:
        return OPEN
    if everywhere:
        return YES if set(words) == {"higher"} else PARTLY if "higher" in words else NO
    return NO if "higher" not in words else PARTLY if "lower" in words else YES


def only(boards: Sequence[Board], **terms: object) -> Figures:
    """Return the one board whose terms are so."""
    (found,) = [b for b in boards if all(getattr(b.terms, k) == v for k, v in terms.items())]
    return Figures(found)


def rows_of(name: str) -> list[dict[str, object]]:
    """Return rows of a file of ``benchmarks/results``."""
    return [json.loads(line) for line in (RESULTS / name).read_text("utf-8").splitlines()]


def _seeds(rows: Sequence[dict[str, object]], method: str, measure: str) -> list[float]:
    return [float(str(r[measure])) for r in rows if r["method"] == method]


RIVALS = ("proxy-at", "proxy-at-wide", "proxy-alp", "ensemble-independent")


def told(rows: Sequence[dict[str, object]], method: str, measure: str) -> str:
    """Return mean and standard deviation of a method over seeds."""
    values = _seeds(rows, method, measure)
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def claims(of: Of) -> list[Claim]:
    """Return every claim with its answer."""
    return [*_hardness(of), *_decoupling(of), *_clusters(), *_certificates(of)]


DIGITS = "holdfast leaderboard run digits"


def _hardness(of: Of) -> list[Claim]:
    """Zhou and Patel, *Enhancing Adversarial Robustness for Deep Metric Learning*, CVPR 2022."""
    d = only(of("digits"), kind="ranking")
    long, paper = "act defense.search.steps=32", "HM, CVPR 2022"
    cheap = d.higher("hm-ics", long, "ers"), d.higher("hm-ics", long, "clean")
    found = [
        Claim(
            paper,
            "training is efficient: as robust as its predecessor at a fraction of the search steps",
            OPEN if "few" in cheap else NO if "lower" in cheap else YES,
            f"digits, R@1 / ERS: `hm-ics` with 8 steps {d.text('hm-ics', 'clean', 'ers')}; `act` with 8 "
            f"{d.text('act', 'clean', 'ers')}, with 32 steps {d.text(long, 'clean', 'ers')}",
            DIGITS,
        )
    ]
    better = [d.higher("hm-ics", "act", "ers"), d.higher("hm-ics", "est", "ers")]
    even = [d.higher("hm-ics", m, "clean") for m in ("act", "est")]
    found.append(
        Claim(
            paper,
            "more robust than the defenses before it, and as accurate or more",
            PARTLY if "lower" in even else answer(better),
            f"digits, R@1 / ERS / worst case: `hm-ics` {d.text('hm-ics', 'clean', 'ers', 'worst')}; `act` "
            f"{d.text('act', 'clean', 'ers', 'worst')}; `est` {d.text('est', 'clean', 'ers', 'worst')}",
            DIGITS,
        )
    )
    gradual = [d.higher("hm", "hm-s-m", m) for m in ("clean", "ers", "worst")]
    found.append(
        Claim(
            paper,
            "the gradual adversary balances accuracy and robustness better than a mined destination",
            answer(gradual, everywhere=False),
            f"digits, R@1 / ERS / worst case: gradual (`hm`) {d.text('hm', 'clean', 'ers', 'worst')}; mined "
            f"(`hm-s-m`) {d.text('hm-s-m', 'clean', 'ers', 'worst')}, from random triplets (`hm-r-m`) "
            f"{d.text('hm-r-m', 'clean', 'ers', 'worst')}",
            DIGITS,
        )
    )
    pairs = [("hm-ics", "hm"), ("hm-s-m-ics", "hm-s-m")]
    gains = [d.higher(a, b, "ers") for a, b in pairs] + [d.higher(a, b, "worst") for a, b in pairs]
    found.append(
        Claim(
            paper,
            "the intra-class structure term makes training more robust",
            answer(gains),
            "digits, ERS / worst case, with and without: " + "; ".join(
                f"`{a}` {d.text(a, 'ers', 'worst')}, `{b}` {d.text(b, 'ers', 'worst')}" for a, b in pairs
            ),
            DIGITS,
        )
    )  # fmt: skip
    return found


WELL = ", which does not collapse either"


def _decoupling(of: Of) -> list[Claim]:
    """Tian et al., *Collapse-Aware Triplet Decoupling* for image retrieval, ICML 2024."""
    d = only(of("digits"), kind="ranking")
    paper = "CA-TRIDE, ICML 2024"
    stronger = d.higher("tride", "act", "ers"), d.higher("tride", "act", "worst")
    aware = d.higher("ca-tride", "tride", "ers"), d.higher("ca-tride", "tride", "clean")
    best = d.higher("ca-tride", "hm-ics", "ers"), d.higher("ca-tride", "hm-ics", "worst")

    still = min(d.values("tride", "clean")) > 90
    return [
        Claim(
            paper,
            "candidates and anchors moved in turns are a stronger adversary, and train more robustly",
            answer(stronger),
            f"digits, R@1 / ERS / worst case: `tride` {d.text('tride', 'clean', 'ers', 'worst')}; `act` "
            f"{d.text('act', 'clean', 'ers', 'worst')}; all three images together (`min-max`) "
            f"{d.text('min-max', 'clean', 'ers', 'worst')}",
            DIGITS,
        ),
        Claim(
            paper,
            "looking at collapseness keeps training from collapsing",
            answer(aware),
            f"digits, R@1 / ERS: with it (`ca-tride`) {d.text('ca-tride', 'clean', 'ers')}; without it "
            f"(`tride`) {d.text('tride', 'clean', 'ers')}{WELL * still}; published code on "
            "Fashion-MNIST with it: TMA 0.98 to 0.99 and ES:D 0.13 to 0.24, which is close to collapse",
            DIGITS,
        ),
        Claim(
            paper,
            "more robust than the defenses before it",
            answer(best),
            f"digits, R@1 / ERS / worst case: `ca-tride` {d.text('ca-tride', 'clean', 'ers', 'worst')}; "
            f"`hm-ics` {d.text('hm-ics', 'clean', 'ers', 'worst')}",
            DIGITS,
        ),
    ]


def _clusters() -> list[Claim]:
    """Ke, *Towards Adversarially Robust Deep Metric Learning*, arXiv:2501.01025; EAT is ours after it."""
    ours = rows_of("2026-11-21-clustering-fashion.jsonl")
    ranking = rows_of("2026-11-21-clustering-ranking.jsonl")
    omniglot = rows_of("2026-11-21-clustering-omniglot.jsonl")
    paper, measure = "EAT, arXiv:2501.01025", "attacked.accuracy"
    means = {m: statistics.fmean(_seeds(ranking, m, measure)) for m in ("hm-ics", "act", "est", "ca-tride")}
    first = max(("eat", *RIVALS), key=lambda m: statistics.fmean(_seeds(ours, m, measure)))
    beats = {_higher(_seeds(ours, "eat", measure), _seeds(ours, m, measure)) for m in RIVALS}
    adapted = statistics.fmean(_seeds(ours, "proxy-at", measure))
    return [
        Claim(
            paper,
            "defenses made for ranking do not protect clusters",
            YES if max(means.values()) < 0.5 * adapted else PARTLY,
            "worst-case accuracy in percent, Fashion-MNIST, small networks: "
            + ", ".join(f"`{m}` {told(ranking, m, measure)}" for m in means)
            + f"; adversarial training of proxies (`proxy-at`) {told(ours, 'proxy-at', measure)}",
            "python benchmarks/clustering.py hm-ics act est ca-tride --data-dir DIR "
            "--set sampler.batch_pairs=32",
        ),
        Claim(
            paper,
            "an ensemble trained together is more robust than adapted defenses of classifiers",
            YES if beats == {"higher"} else PARTLY if first == "eat" else NO,
            f"Fashion-MNIST: `eat` {told(ours, 'eat', measure)}, `proxy-at` "
            f"{told(ours, 'proxy-at', measure)}, as wide as three {told(ours, 'proxy-at-wide', measure)}; "
            f"logit pairing in one model {told(ours, 'proxy-alp', measure)} and three members trained apart "
            f"{told(ours, 'ensemble-independent', measure)}; paired by query it beats "
            "the first two (p <= 0.001) and neither of the others; Omniglot: `eat` "
            f"{told(omniglot, 'eat', measure)} lies behind the latter's "
            f"{told(omniglot, 'ensemble-independent', measure)}",
            "python benchmarks/clustering.py eat proxy-at ensemble-independent --data-dir DIR",
        ),
    ]


def _certificates(of: Of) -> list[Claim]:
    """Wang et al., *Provably Robust Metric Learning*, NeurIPS 2020."""
    paper = "ARML, NeurIPS 2020"
    tables = {b.terms.dataset: Figures(b) for b in of("certified-linear", "neighbours")}

    def differences(a: str, b: str, measure: str) -> list[float]:
        means = [(f.values(a, measure), f.values(b, measure)) for f in tables.values()]
        return [statistics.fmean(x) - statistics.fmean(y) for x, y in means]

    gap, gain = differences("nca", "euclidean", "median"), differences("arml", "euclidean", "median")
    clean = differences("arml", "nca", "clean")
    return [
        Claim(
            paper,
            "usual metric learning is often less robust than no metric learning",
            YES if sum(v < 0 for v in gap) > len(gap) / 2 else PARTLY,
            "median certified radius, NCA / Euclidean: " + "; ".join(
                f"{n} {f.text('nca', 'median', digits=3)} / {f.text('euclidean', 'median', digits=3)}"
                for n, f in tables.items()
            ),
            "holdfast leaderboard run certified-linear --data-dir DIR",
        ),
        Claim(
            paper,
            "its metric is certified at larger radii",
            YES if all(v > 0 for v in gain) else PARTLY,
            "median certified radius, ARML / Euclidean: " + "; ".join(
                f"{n} {f.text('arml', 'median', digits=3)} / {f.text('euclidean', 'median', digits=3)}"
                for n, f in tables.items()
            ),
            "holdfast leaderboard run certified-linear --data-dir DIR",
        ),
        Claim(
            paper,
            "without more clean errors than usual metric learning",
            YES if all(v <= 1.0 for v in clean) else PARTLY,
            "clean error in percent, ARML / NCA / Euclidean: " + "; ".join(
                f"{n} {f.text('arml', 'clean')} / {f.text('nca', 'clean')} / {f.text('euclidean', 'clean')}"
                for n, f in tables.items()
            ),
            "holdfast leaderboard run certified-linear --data-dir DIR",
        ),
    ]  # fmt: skip
