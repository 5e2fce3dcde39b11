"""Other people's models as encoders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.encoders import adapt
from holdfast.errors import InvalidArgument
from holdfast.rng import stream

X = torch.rand(3, 3, 6, 6, generator=stream(0, "adapt"))
Z = X.flatten(1)


class Says(nn.Module):
    """A model that returns its flat input in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(x.flatten(1))


class Clip(nn.Module):
    """Like the towers of CLIP: ``forward`` wants text as well."""

    def forward(self, text: Tensor, pixel_values: Tensor) -> Tensor:
        raise AssertionError("not the image tower")

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return 2 * pixel_values.flatten(1)


@pytest.mark.parametrize(
    "form",
    [
        lambda z: z,
        lambda z: z[..., None, None],
        lambda z: (z, "more"),
        lambda z: {"embeddings": z, "logits": z[:, :2]},
        lambda z: SimpleNamespace(pooler_output=z, last_hidden_state=z[:, None].repeat(1, 5, 1) + 1),
        lambda z: SimpleNamespace(pooler_output=None, last_hidden_state=torch.stack([z, z + 1], 1)),
        lambda z: SimpleNamespace(image_embeds=z, pooler_output=z + 1),
        lambda z: z.numpy(),
        lambda z: z.bfloat16(),
    ],
)
def test_the_embedding_is_found(form: Any) -> None:
    z = adapt(Says(form))(X)
    assert z.dtype == torch.float32
    assert torch.allclose(z, Z, atol=0.01)


def test_clip_is_asked_for_its_image_tower() -> None:
    assert torch.equal(adapt(Clip())(X), 2 * Z)


def test_plain_functions_work() -> None:
    assert torch.equal(adapt(lambda x: np.asarray(x).reshape(len(x), -1))(X), Z)


def test_steps_come_in_order_and_gradients_reach_the_pixels() -> None:
    grey = X[:, :1].clone().requires_grad_(True)
    net = adapt(
        Says(lambda z: z), mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], resize=3, channels=3, normalize=True
    )
    z = net(grey)
    small = F.interpolate(grey, (3, 3), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    expected = (small - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    assert torch.allclose(z, F.normalize(expected.flatten(1), dim=1), atol=1e-6)
    z.sum().backward()  # type: ignore[no-untyped-call]
    assert grey.grad is not None
    assert bool((grey.grad != 0).all())


@pytest.mark.parametrize("form", [lambda z: z[:, None].repeat(1, 2, 1), lambda z: "text", lambda z: ()])
def test_other_outputs_are_refused(form: Any) -> None:
    with pytest.raises(InvalidArgument, match="encoder"):
        adapt(Says(form))(X)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"mean": [0.5]}, "mean, std"),
        ({"resize": 0}, "resize"),
        ({"resize": (1, 2, 3)}, "resize"),
        ({"channels": 0}, "channels"),
        ({"mean": [0.5], "std": [0.0]}, "std"),
    ],
)
def test_bad_settings(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=argument):
        adapt(nn.Flatten(), **settings)


def test_no_model() -> None:
    with pytest.raises(InvalidArgument, match="model"):
        adapt(3)  # type: ignore[arg-type]
