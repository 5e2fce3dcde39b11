"""A starter recipe for a folder of images: what is chosen, and the file that says so [D]."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from ..data.base import Protocols
from ..errors import DataError
from .look import Look

EPS = "8 / 255"
LARGEST = 64
"""Side of the pictures that a starter recipe trains on, in pixels, at most."""
SEEN = 12_000
"""Pictures that a starter recipe shows to the encoder in all its epochs, about."""
HELD = 1 << 30
"""Bytes of pictures that are held in memory at most; more stay files."""
UNSEEN = 20
"""From so many classes on, the test is on classes that training never saw."""
UNEVEN = 5.0
"""From this ratio of the largest class to the smallest on, batches draw classes, not pictures."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a starter recipe sets, and how many pictures it leaves.

    Attributes
    ----------
    protocol, test_share, min_images, broken, leave_out, memory
        Of :class:`~holdfast.data.ImageFolder`.
    side
        Of the pictures that are trained on, in pixels.
    pairs, classes
        Pairs in a batch; or with ``classes``, so many classes of four pictures each.
    epochs
        Passes over the training pictures.
    counts
        Training pictures of every class that is trained on.
    test
        Test pictures.
    small
        Classes that have too few pictures to be used.
    """

    protocol: Protocols
    test_share: float
    min_images: int
    broken: Literal["refuse", "skip"]
    leave_out: tuple[str, ...]
    memory: bool
    side: int
    pairs: int
    classes: int | None
    epochs: int
    counts: dict[str, int]
    test: int
    small: tuple[str, ...]

    @property
    def train(self) -> int:
        """Number of training pictures."""
        return sum(self.counts.values())


def choose(found: Look) -> Choice:
    """Choose the settings of a starter recipe.

    Raises
    ------
    DataError
        If the pictures cannot be trained on: no class folders, fewer than two classes with enough pictures,
        or test classes some of which are trained on and some not.
    """
    if found.flat:
        raise DataError(
            f"{found.root}: no class folders: a class is a folder of its pictures; move them into "
            f"{found.root}/CLASS/{_folders(found)}"
        )
    spare = _spare(found)
    kept = [p for p in found.pictures if p.name not in spare]
    sides = {side: Counter(p.label for p in kept if p.side == side) for side in {p.side for p in kept}}
    protocol, least = _protocol(found, sides)
    if found.sided:
        train, test = ({k: n for k, n in sides[s].items() if n >= least} for s in ("train/", "test/"))
        share = 0.5
        if protocol == "closed":
            test = {k: n for k, n in test.items() if k in train}
    else:
        enough = {k: sides[""][k] for k in sorted(sides[""]) if sides[""][k] >= least}
        share = 0.3 if protocol == "closed" and min(enough.values(), default=0) >= 7 else 0.5
        train, test = _divided(enough, protocol, share)
    used = {*train, *test}
    if len(train) < 2 or len(test) < 2:
        raise DataError(
            f"{found.root}: need two classes to train and to test, with {least} usable pictures each, got "
            f"{len(train)} and {len(test)}: add pictures or classes"
        )
    return Choice(
        protocol=protocol,
        test_share=share,
        min_images=least,
        broken="skip" if found.broken else "refuse",
        leave_out=tuple(sorted(spare)),
        memory=(sum(train.values()) + sum(test.values())) * 12 * (side := _side(found)) ** 2 <= HELD,
        side=side,
        pairs=min(32, max(4, sum(train.values()) // 8)),
        classes=min(16, len(train)) if max(train.values()) >= UNEVEN * min(train.values()) else None,
        epochs=min(60, max(5, round(SEEN / sum(train.values())))),
        counts=dict(train),
        test=sum(test.values()),
        small=tuple(sorted({p.label for p in found.pictures} - used)),
    )


def _spare(found: Look) -> set[str]:
    """Return what is left out: pictures of two classes, and all copies but the first."""
    doubtful = {name for group in found.contradictory() for name in group}
    return doubtful | {name for group in found.copies for name in group[1:]}


def _protocol(found: Look, sides: dict[str, Counter[str]]) -> tuple[Protocols, int]:
    """Return how to test, and the fewest pictures of a class (on each side) that this takes."""
    if found.sided:
        train, test = ({k for k, n in sides.get(s, {}).items() if n >= 2} for s in ("train/", "test/"))
        if not train & test:
            return "zero-shot", 2
        if new := sorted(test - {p.label for p in found.pictures if p.side == "train/"}):
            raise DataError(
                f"{found.root}: test/ holds classes that train/ has ({len(test & train)}) and classes that "
                f"it has not ({', '.join(new[:5])}): keep one kind"
            )
        return "closed", 2
    counts = sides[""]
    whole = sum(n >= 4 for n in counts.values())  # two to train, two to test
    pairs = sum(n >= 2 for n in counts.values())
    return ("zero-shot", 2) if pairs >= UNSEEN or (whole < 2 and pairs >= 4) else ("closed", 4)


def _divided(
    enough: dict[str, int], protocol: Protocols, share: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the pictures of every class on both sides, as ImageFolder divides them."""
    if protocol == "closed":
        test = {k: min(round(share * n), n - 1) for k, n in enough.items()}
        return {k: n - test[k] for k, n in enough.items()}, test
    tested = min(max(round(share * len(enough)), 1), len(enough) - 1)
    names = list(enough)
    first = len(names) - tested
    return {k: enough[k] for k in names[:first]}, {k: enough[k] for k in names[first:]}


def _side(found: Look) -> int:
    """Return a side of whole eights, not above that of the pictures."""
    middle = median(min(p.width, p.height) for p in found.pictures)
    return int(min(LARGEST, max(8, middle // 8 * 8)))


def _folders(found: Look) -> str:
    """Return what names of files hint at: ``cat_01.jpg`` and ``dog-7.jpg`` would be cat and dog."""
    stems = (Path(p.name).stem.rstrip("0123456789").rstrip(" _-.()") for p in found.pictures)
    names = [name for name, count in Counter(stems).items() if name and count >= 2]
    return f" (by their names perhaps {', '.join(sorted(names)[:5])})" if 2 <= len(names) <= 50 else ""


def recipe_text(
    found: Look, chosen: Choice, *, file: str = "recipe.py", root: str | Path | None = None
) -> str:
    """Return the recipe as a Python file with a function ``run`` and, to compare, ``plain``.

    Parameters
    ----------
    found
        What was seen.
    chosen
        What follows from it.
    file
        What the file will be called, for the commands it names.
    root
        Folder of the pictures, where it is another than the one that was looked at.
    """
    return _TEMPLATE.format(
        file=_shown(file),
        photos=quoted(str(Path(root or found.root).resolve())),
        side=chosen.side,
        side_why=_side_words(found, chosen),
        eps=EPS,
        data="\n".join(f"            {line}" for line in _data(found, chosen)),
        sampler=_sampler(chosen),
        epochs=chosen.epochs,
        epochs_why=f"{chosen.epochs} x {chosen.train} training pictures",
        augment=_augment(chosen),
        augment_import="Augment, " if chosen.memory else "",
        sampler_import="MPerClass" if chosen.classes else "PairSampler",
        left_out=_left_out(chosen),
    )


def quoted(text: str) -> str:
    """Return a Python string literal in double quotes, whatever a file's name holds."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _shown(text: str) -> str:
    return text if text.isprintable() and '"' not in text and "\\" not in text else "recipe.py"


def _side_words(found: Look, chosen: Choice) -> str:
    middle = median(min(p.width, p.height) for p in found.pictures)
    return f"the shorter side of your pictures is {middle:g} pixels (median)"


def _data(found: Look, chosen: Choice) -> list[str]:
    closed = chosen.protocol == "closed"
    words = "every class trains and is tested" if closed else "tested on classes that training never saw"
    lines = [f'protocol="{chosen.protocol}",  # {words}']
    if not found.sided:
        of = "pictures of every class" if closed else "classes"
        lines.append(f"test_share={chosen.test_share:g},  # of the {of}: the last by name")
    resize = "SIDE" if chosen.memory else "SIDE * 8 // 7"
    lines += [f"resize={resize},", "crop=SIDE,"]
    if chosen.memory:
        lines.append("memory=True,  # decoded once: your pictures fit")
    lines.append("upright=True,  # turned as the camera says")
    fewer = f": {len(chosen.small)} here" if chosen.small else ""
    lines.append(f"min_images={chosen.min_images},  # smaller classes are not used{fewer}")
    if chosen.broken == "skip":
        n = len(found.broken)
        lines.append(f'broken="skip",  # {n} file{"s" * (n != 1)} cannot be read: passed over, and told')
    else:
        lines.append('broken="refuse",  # all can be read; one that breaks later stops the run')
    if chosen.leave_out:
        lines.append("leave_out=LEFT_OUT,  # see below")
    return lines


def _sampler(chosen: Choice) -> str:
    n = len(chosen.counts)
    if chosen.classes:
        spread = f"{min(chosen.counts.values())} to {max(chosen.counts.values())}"
        return (
            f"        # {n} classes of {spread} pictures: batches draw classes, so that small ones count.\n"
            f"        sampler=MPerClass({chosen.classes}, 4),"
        )
    each = chosen.pairs / n
    often = f"about {each:.2g} of each of {n} classes" if each >= 1 else f"of {n} classes"
    return f"        sampler=PairSampler({chosen.pairs}),  # pairs in a batch, {often}"


def _augment(chosen: Choice) -> str:
    if not chosen.memory:
        return "        # Training pictures are cut at random places and mirrored when they are decoded."
    shift = max(1, chosen.side // 16)
    return (
        f"        augment=Augment(shift={shift}, flip=0.5),  # flip=0 where left and right differ, as in text"
    )


def _left_out(chosen: Choice) -> str:
    if not chosen.leave_out:
        return ""
    names = "\n".join(f"    {quoted(name)}," for name in chosen.leave_out)
    why = "# Pictures that stand in two classes, and copies of others. Mend the folder, then delete this."
    return f"\n\n{why}\nLEFT_OUT = (\n{names}\n)\n"


_TEMPLATE = '''"""A starter recipe, written by `holdfast init`: change what you like.

    holdfast plan {file}                             what it costs on this machine
    holdfast train {file} --out runs/mine            train it
    holdfast train {file}:plain --out runs/plain     the same without a defense, to compare
    holdfast evaluate runs/mine && holdfast report runs/plain runs/mine
"""

from dataclasses import replace

from holdfast.adversaries import Gradual, HardnessManipulation
from holdfast.data import {augment_import}ImageFolder, {sampler_import}
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.losses import IntraClassStructure, Triplet
from holdfast.miners import Random, Softhard
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import CollapseGuard, Run

PHOTOS = {photos}
SIDE = {side}  # {side_why}
EPS = {eps}  # every pixel may move by 8 of 255 levels: hardly seen


def run() -> Run:
    """Train with hardness manipulation and intra-class structure (Zhou and Patel, CVPR 2022)."""
    threat = LinfThreat(eps=EPS)
    return Run(
        name="hm-ics",
        data=ImageFolder(
            PHOTOS,
{data}
        ),
        # Small and trained from nothing. With a GPU and ImageNet weights in a file of yours:
        # SIDE = 224, encoder=ResNet18(weights="resnet18.pth"), optimizer=Adam(lr=1e-5).
        encoder=SmallCNN(),
        defense=AdversarialTraining(
            loss=Triplet(margin=0.2),
            miner=Softhard(),
            adversary=HardnessManipulation(destination=Gradual()),
            search=PGD(steps=8, alpha=EPS / 4),  # the attack on each batch
            threat=threat,
            extra=(IntraClassStructure(weight=0.5),),
        ),
        threat=threat,
{sampler}
{augment}
        epochs={epochs},  # {epochs_why}
        guard=CollapseGuard(),  # eases the attack should all embeddings fall together
    )


def plain() -> Run:
    """Train the same encoder without a defense."""
    loss = AdversarialTraining(loss=Triplet(margin=0.2), miner=Random())
    return replace(run(), name="plain", defense=loss, guard=None)
{left_out}'''
