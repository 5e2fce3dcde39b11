from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.defenses import Mixture
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine, SquaredEuclidean
from holdfast.recipes import recipe


@pytest.mark.parametrize("distance", [Cosine(), SquaredEuclidean()])
@pytest.mark.parametrize("name", ["hm", "hm-ics", "hm-s-m", "hmix", "amd-semi", "holdfast"])
def test_hardness_manipulation_wants_euclidean_distances(name: str, distance: object) -> None:
    with pytest.raises(InvalidArgument, match="distance: need Euclidean for HardnessManipulation"):
        replace(recipe(name), distance=distance)


def test_other_defenses_take_other_distances() -> None:
    assert replace(recipe("est"), distance=Cosine()).distance == Cosine()
    mixed = Mixture(parts=(recipe("plain").defense, recipe("hm").defense))
    with pytest.raises(InvalidArgument, match="Euclidean"):
        replace(recipe("plain"), defense=mixed, distance=Cosine())
