from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from holdfast import config
from holdfast.data import Augment
from holdfast.errors import InvalidArgument
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.runs import allowed_types


def test_shifted_image_is_the_old_one_at_one_of_the_places() -> None:
    x = torch.rand(64, 2, 5, 4, generator=stream(0, "x"))
    moved = Augment(shift=1)(x, stream(0, "draw"))
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1))
    places = set()
    for image, source in zip(moved, wide, strict=True):
        hits = [
            (a, b) for a in range(3) for b in range(3) if torch.equal(image, source[:, a : a + 5, b : b + 4])
        ]
        assert len(hits) == 1
        places.add(hits[0])
    assert len(places) == 9


def test_mirror_probability() -> None:
    x = torch.rand(400, 1, 3, 3, generator=stream(1, "x"))
    turned = (Augment(shift=0, flip=0.25)(x, stream(1, "draw")) == x.flip(3)).flatten(1).all(1)
    assert 60 < int(turned.sum()) < 140
    assert torch.equal(Augment(shift=0)(x, stream(1, "draw")), x)


def test_same_stream_same_images_and_the_source_stays() -> None:
    x = torch.rand(8, 1, 6, 6, generator=stream(2, "x"))
    kept = x.clone()
    a, b = (Augment(flip=0.5)(x, stream(3, "draw")) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(x, kept)
    assert not torch.equal(a, x)


def test_a_run_remembers_it() -> None:
    run = replace(recipe("plain"), augment=Augment(shift=1, flip=0.5))
    assert config.from_plain(config.to_plain(run), allowed_types()) == run


@pytest.mark.parametrize(("field", "value"), [("shift", -1), ("shift", 1.5), ("flip", 1.1), ("flip", -0.1)])
def test_bad_settings(field: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=field):
        Augment(**{field: value})
