"""The words of the checks: name, what is required, what to do, and the verdict of a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .finding import Finding, Status, Word


class Text(NamedTuple):
    """What is said about a check whatever it finds."""

    name: str
    threshold: str
    remedy: str
    group: Word


class Words(NamedTuple):
    """What scores and successes are called.

    Attributes
    ----------
    score
        The share of queries that are right.
    lost
        What queries do that are not right any more.
    another
        What an image has to be of, so that it is not right in the place of the query.
    """

    score: str
    lost: str
    another: str


GALLERY = Words("recall@1", "are wrong", "another class")
CLUSTERS = Words("share in its own cluster", "have left their cluster", "another cluster")

_BAD: Word = "INVALID"
_HIGH: Word = "OVERESTIMATED"
_THIN: Word = "UNDERPOWERED"

TEXTS: Mapping[str, Text] = {
    "R1": Text(
        "determinism",
        "unit embeddings of 5 passes differ by at most 1e-4",
        "attack the mean of at least 20 passes and decide by the mean embedding, or make the encoder "
        "deterministic",
        _BAD,
    ),
    "R2": Text(
        "no-op",
        "with eps 0 nothing changes: images by at most 1e-6, margins by 1e-4, and no query is lost",
        "use one pipeline for clean and attacked images: normalisation, resizing, evaluation mode",
        _BAD,
    ),
    "R3": Text(
        "constraint audit",
        "every output inside the threat (1e-6) and [0, 1] and finite; rounding to 8 bits loses at most 2 % "
        "(warn 5 %) of success",
        "project the last step, and attack at a radius that 8-bit images can show",
        _BAD,
    ),
    "R4": Text(
        "gradient exists",
        "no query has a zero or NaN input gradient (warn 1 %)",
        "attack with search.Square, or replace the backward pass of the part that stops the gradient (BPDA)",
        _HIGH,
    ),
    "R5": Text(
        "gradient correct",
        "median relative error against central differences at most 1e-2 (warn 1e-1)",
        "attack with search.Square, or differentiate a smooth stand-in of the shattered part (BPDA)",
        _HIGH,
    ),
    "R6": Text(
        "landscape",
        "mean relative change of the gain at random points of the ball at most 0.1 (warn 0.5)",
        "use averaged gradients (search.Averaged)",
        _THIN,
    ),
    "R7": Text(
        "inner loop",
        "the encoder differentiates nothing inside its forward pass",
        "attack the encoder together with its inner optimisation",
        _HIGH,
    ),
    "R8": Text(
        "single against iterative",
        "the search finds at least what one step of length eps finds",
        "shorten the step, or look for a masked gradient",
        _HIGH,
    ),
    "R9": Text(
        "converged steps",
        "twice the steps add at most 1 % of success (warn 2 %) and 1 % of gain",
        "double the steps until nothing is added, up to 1000",
        _HIGH,
    ),
    "R10": Text(
        "last steps",
        "the last 10 steps add at most 5 % of the gain for 90 % (warn 80 %) of the queries that held",
        "use more steps, or a shrinking step (search.APGD)",
        _THIN,
    ),
    "R11": Text(
        "restarts",
        "10 restarts find at most 1 % (warn 2 %) more than 5",
        "use 10 restarts",
        _HIGH,
    ),
    "R12": Text(
        "step size",
        "no other step length and no APGD finds more than 1 % (warn 3 %) in addition",
        "use the best of them",
        _HIGH,
    ),
    "R13": Text(
        "monotone in eps",
        "success never falls as eps grows",
        "look for a masked gradient, and keep the best iterate",
        _HIGH,
    ),
    "R14": Text(
        "large budget",
        "with half and then all of the pixel range success reaches 99 % (warn 95 %)",
        "the gradient is masked or the attack broken: use search.Square or BPDA",
        _HIGH,
    ),
    "R15": Text(
        "oracle swap",
        "an image of another class (a reference of another cluster) in place of the query always counts as a "
        "success, and gets that cluster",
        "correct the evaluation: it does not see a query that is already another image",
        _BAD,
    ),
    "R16": Text(
        "random noise",
        "noise alone breaks no query that the attack missed (warn 1 %)",
        "count the union as the score, and repair the attack",
        _HIGH,
    ),
    "R17": Text(
        "black box",
        "Square adds at most 0.2 % (warn 1 %) of success",
        "count the union as the score; the gradients mislead",
        _HIGH,
    ),
    "R18": Text(
        "top-k only",
        "an attack that sees nothing but the list, or the cluster, adds at most 0.2 % (warn 1 %) of success",
        "count the union as the score; the gradients mislead",
        _HIGH,
    ),
    "R19": Text(
        "transfer",
        "another model's attack is weaker, and adds at most 0.5 % (warn 1 %) of success",
        "count the union as the score; the gradients mislead",
        _HIGH,
    ),
    "R20": Text(
        "objective diversity",
        "the union of all objectives is at most 1 % (warn 3 %) above the best one",
        "report the union alone",
        _HIGH,
    ),
    "R21": Text(
        "attack control",
        "the same attack succeeds on 95 % (warn 80 %) of the undefended twin's queries",
        "repair the attack, or enlarge eps: it does not even break an undefended model",
        _HIGH,
    ),
    "R22": Text(
        "known-broken controls",
        "each built-in broken encoder is caught",
        "trust no verdict here: the checks themselves do not work with this task",
        _BAD,
    ),
    "R23": Text(
        "silent success",
        "no iterate succeeded where the returned one does not",
        "return the best iterate: keep='best'",
        _BAD,
    ),
    "R24": Text(
        "collapse",
        "mean cosine below 0.9 (warn 0.97), effective rank at least 5 (warn 2), ties below 0.1 %, clean "
        "recall@1 (of named clusters the accuracy) at least twice chance",
        "train the encoder to tell classes apart first; its robustness is that of a constant",
        "VACUOUS",
    ),
    "R25": Text(
        "robust at most clean",
        "no measure is better under attack than without, beyond chance",
        "compare the same queries and the same measure, clean and attacked",
        _BAD,
    ),
    "R26": Text(
        "certificate against attack",
        "no attack succeeds inside a certified radius, beyond the certificate's own alpha",
        "withdraw the certificate: it is unsound",
        _BAD,
    ),
    "R27": Text(
        "certified at most empirical",
        "the certified score falls with the radius, from at most the clean one, and lies below that under "
        "every attack",
        "withdraw the certificate: it promises more than there is",
        _BAD,
    ),
    "R28": Text(
        "ensemble",
        "the attack on the joint embedding finds what attacks on members or on the sum of their unit "
        "gradients find",
        "attack the sum of normalised gradients: one member dominates the joint one",
        _HIGH,
    ),
    "R29": Text(
        "index in the loop",
        "the score under attack differs by at most 1 % (warn 3 %) between exact search and the index",
        "report exact search: the index hides neighbours from the attack",
        _HIGH,
    ),
    "R30": Text(
        "mode",
        "the search sees the encoder in the mode that is deployed",
        "attack in the deployed mode (search.frozen)",
        _BAD,
    ),
    "R31": Text(
        "precision",
        "low precision is no harder to break with its own gradients than with those of float32",
        "attack in float32",
        _HIGH,
    ),
    "R32": Text(
        "power",
        "half-width of the 95 % interval of the score under attack at most 2 % (warn 4 %)",
        "attack more queries",
        _THIN,
    ),
    "R33": Text(
        "seed spread",
        "at least 3 training seeds each and 5 candidate draws; the difference above 2 sd, with p < 0.05",
        "train more seeds, or claim no difference",
        _THIN,
    ),
    "R34": Text(
        "binarisation",
        "the attack finds 95 % (warn 80 %) of adversarial points that were planted",
        "repair the attack: it misses points that are known to exist",
        _HIGH,
    ),
    "R35": Text(
        "targeted and untargeted",
        "the untargeted attack finds at least what the targeted one finds",
        "repair the untargeted attack, and count the union",
        _HIGH,
    ),
    "R36": Text(
        "leakage",
        "no label of training among the test labels, and no near-duplicate between queries and gallery, "
        "references or training images (warn 0.1 %)",
        "remove the duplicates, and split by identity",
        _BAD,
    ),
}
"""The page gives a verdict to 29 of the checks. The others stand where their consequence puts them: R1 (no
score), R25 and R36 make a number INVALID; R7 and R29 leave it an upper bound; R6 and R10 are signs of a
search in trouble and not yet a proof that it missed anything, so that the number is UNDERPOWERED."""


def found(name: str, status: Status, value: float | None, detail: str) -> Finding:
    """Return a finding with the words of its check."""
    text = TEXTS[name]
    return Finding(
        id=name,
        name=text.name,
        status=status,
        value=value,
        threshold=text.threshold,
        detail=detail,
        remedy=text.remedy,
        group=text.group,
    )


def skipped(name: str, why: str, *, owed: bool = False) -> Finding:
    """Return the finding of a check that did not run; ``why`` says what to hand in."""
    text = TEXTS[name]
    return Finding(
        id=name,
        name=text.name,
        status="skipped",
        threshold=text.threshold,
        detail=why,
        group=text.group,
        owed=owed,
    )


ROUNDING = 1e-12


def at_most(value: float, limit: float, warn: float) -> Status:
    """Grade a number that should be small; 0.36 - 0.33 is not above 0.03."""
    return "pass" if value <= limit + ROUNDING else "warn" if value <= warn + ROUNDING else "fail"


def at_least(value: float, limit: float, warn: float) -> Status:
    """Grade a number that should be large."""
    return "pass" if value >= limit - ROUNDING else "warn" if value >= warn - ROUNDING else "fail"


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"
