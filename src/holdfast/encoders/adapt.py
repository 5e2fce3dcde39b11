"""Turn other people's models into encoders: images in [0, 1] to one embedding each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument
from .encoder import Standardize, check_width

FIELDS = ("image_embeds", "embeddings", "features", "pooler_output", "last_hidden_state")
"""Where models of several outputs keep the embedding, the first that is there counts; of the last one, a
sequence of tokens, the first token is taken."""


class Adapted(nn.Module):
    """Channels, size and standardisation as a model wants them, then the model, its embedding, its norm.

    Built by :func:`adapt`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        channels: int | None,
        resize: tuple[int, int] | None,
        standardize: nn.Module | None,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.channels, self.resize, self.normalize = channels, resize, normalize
        self.standardize = standardize

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, e)."""
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if self.resize is not None and tuple(x.shape[2:]) != self.resize:
            x = F.interpolate(x, self.resize, mode="bilinear", antialias=True)
        if self.standardize is not None:
            x = self.standardize(x)
        tower = getattr(self.model, "get_image_features", None)
        z = picked(tower(pixel_values=x) if tower is not None else self.model(x))
        if z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()
        return F.normalize(z, dim=1) if self.normalize else z


def picked(output: Any) -> Tensor:
    """Return the embeddings (n, e) out of what a model returned.

    Raises
    ------
    InvalidArgument
        If nothing in it looks like one embedding for each image.
    """
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
    if isinstance(output, Tensor):
        if output.ndim == 4 and tuple(output.shape[2:]) == (1, 1):
            return output.flatten(1)
        if output.ndim != 2:
            raise InvalidArgument("encoder", "one embedding for each image, (n, e)", tuple(output.shape))
        return output
    for name in FIELDS:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value[:, 0] if value.ndim == 3 else picked(value)
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return picked(output[0])
    raise InvalidArgument(
        "encoder", f"a tensor (n, e), or an output with one of {', '.join(FIELDS)}", type(output).__name__
    )


def adapt(
    model: Callable[..., Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | tuple[int, int] | None = None,
    channels: int | None = None,
    normalize: bool = False,
) -> nn.Module:
    """Make an encoder of a model that expects standardised images or returns more than an embedding.

    Everything is differentiable, so that attacks go through it to the pixels.

    Parameters
    ----------
    model
        A torch module (a timm network, a vision model or CLIP of Hugging Face, a model trained with
        pytorch-metric-learning or OML), or any callable. CLIP-like models are called through
        ``get_image_features``. It should be in evaluation mode; searches and evaluations see to that.
    mean, std
        Standardisation that the model expects, one number or one for each channel; both or none.
    resize
        Side, or (height, width), that the model expects: images are resized bilinearly, with anti-aliasing.
    channels
        Give images of one channel so many equal ones.
    normalize
        Divide embeddings by their L2 norm.

    Returns
    -------
    torch.nn.Module
        (n, c, h, w) in [0, 1] -> (n, e).

    Examples
    --------
    >>> import torch
    >>> net = adapt(torch.nn.Flatten(), mean=[0.5], std=[0.5], normalize=True)
    >>> net(torch.ones(1, 1, 1, 1)).tolist()
    [[1.0]]
    """
    if not callable(model):
        raise InvalidArgument("model", "a module or a callable", type(model).__name__)
    if (mean is None) != (std is None):
        raise InvalidArgument("mean, std", "both or none", (mean, std))
    if channels is not None:
        check_width("channels", channels)
    size = (resize, resize) if isinstance(resize, int) else resize
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InvalidArgument("resize", "a side >= 1 or (height, width)", resize)
    standardize = None
    if mean is not None and std is not None:
        standardize = Standardize(mean, std, channels=max(len(mean), len(std), channels or 1))
    return Adapted(model, channels, size, standardize, normalize)
