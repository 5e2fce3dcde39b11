"""Encoders as ONNX: normalisation, members and embedding in one graph that takes images in [0, 1]."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .._version import __version__
from ..encoders import OrthogonalLinear
from ..errors import InvalidArgument, told
from ..files import replacing
from ..runs import RunFolder, open_run
from ..search import frozen
from ..types import Encoder, Images, PairwiseDistance
from .quantise import quantise
from .session import OnnxEncoder
from .tools import INPUT, OUTPUT, Tools, quietly, tools_of

OPSET = 18
"""The newest that onnxruntime 1.15 (2023) reads, and the oldest that PyTorch's exporter writes natively."""


def _plain(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose proven matrices are constants."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, OrthogonalLinear):
            layer.weight = nn.Parameter(layer.matrix().clone(), requires_grad=False)
            layer.matrix = _constant(layer)  # type: ignore[method-assign]
    return copied


def _constant(layer: nn.Linear) -> Callable[[], Tensor]:
    return lambda: layer.weight


def tensors_hash(encoder: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and values of all weights, in hexadecimal."""
    total = hashlib.sha256()
    for name, t in sorted(encoder.state_dict().items()):
        values = t.detach().cpu()
        plain = values.float() if values.dtype == torch.bfloat16 else values
        total.update(f"{name} {tuple(t.shape)} {t.dtype}".encode() + plain.numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What :func:`export_onnx` wrote.

    Attributes
    ----------
    path, int8
        The graphs; ``int8`` is ``None`` where it was not asked for.
    opset
        Version of the operations.
    metadata
        What stands in the files.
    difference
        For each batch size the largest absolute difference of an embedding between PyTorch and onnxruntime,
        on the images given or on random ones.
    quantised
        ``"static"`` or ``"dynamic"``: how int8 was made; ``None`` without.
    """

    path: Path
    int8: Path | None
    opset: int
    metadata: Mapping[str, str]
    difference: Mapping[int, float]
    quantised: Literal["static", "dynamic"] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "onnx": self.path.name, "int8": None if self.int8 is None else self.int8.name,
            "quantised": self.quantised, "opset": self.opset, "metadata": dict(self.metadata),
            "difference": {str(n): d for n, d in self.difference.items()},
        }  # fmt: skip


def export_onnx(
    source: str | Path | RunFolder | nn.Module,
    out: str | Path,
    *,
    opset: int = OPSET,
    int8: bool = False,
    calibration: Images | None = None,
    images: Images | None = None,
    shape: tuple[int, int, int] | None = None,
    distance: PairwiseDistance | None = None,
    name: str = "",
    batches: tuple[int, ...] = (1, 7, 32),
    tolerance: float = 1e-4,
) -> Exported:
    """Write an encoder as one ONNX graph, from ``images`` (n, c, h, w) in [0, 1] to ``embeddings`` (n, e).

    The number of images n is free. Standardisation, the members of an ensemble and the division by the norm
    are inside. The graph is run in onnxruntime and compared with PyTorch before it is written.

    Parameters
    ----------
    source
        A run folder, or an encoder.
    out
        A file that ends in ``.onnx``, or a folder for ``encoder.onnx``. int8 goes beside it, as
        ``encoder.int8.onnx``.
    opset
        Version of the operations, at least 18.
    int8
        Quantise weights and activations to 8 bits as well: static quantisation (QDQ) with ranges from
        ``calibration``, or dynamic quantisation where that fails.
    calibration
        Images that set the ranges, at most 256 of them; of a run folder by default its training images.
    images
        Images for the comparison; of a run folder by default its test images, else random ones.
    shape
        Channels, height and width, for encoders that do not know their own.
    distance
        What embeddings are compared by, for the metadata; of a run folder by default its own.
    name
        Of the run, for the metadata.
    batches, tolerance
        Numbers of images that are compared, and the largest difference that is accepted.

    Returns
    -------
    Exported
        With the differences found.

    Raises
    ------
    MissingExtra
        If onnx, onnxscript or onnxruntime is not installed.
    InvalidArgument
        If the encoder cannot be traced, its graph fixes the number of images, or onnxruntime disagrees with
        PyTorch by more than ``tolerance``; nothing is written then.

    Notes
    -----
    PyTorch's exporter over ``torch.export`` is used and not the older one over TorchScript. Both write all
    encoders of this library, but the older one keeps every Python number that it sees while tracing without
    a word, a number of rows too, so that a graph may be wrong for all other batches; and PyTorch has
    announced its end. Of layers with a proven gain the matrices of evaluation mode are written as constants.
    Paths of the exporting machine, which the exporter adds, are taken out.

    Examples
    --------
    >>> import tempfile
    >>> from holdfast.encoders import SmallCNN
    >>> folder = tempfile.mkdtemp()
    >>> found = export_onnx(SmallCNN(width=4).build((1, 8, 8), seed=0), folder)  # doctest: +SKIP
    >>> max(found.difference.values()) < 1e-5  # doctest: +SKIP
    True
    """
    tools = tools_of()
    if type(opset) is not int or opset < OPSET:
        raise InvalidArgument("opset", f"an integer >= {OPSET}", opset)
    known: dict[str, str] = {}
    if isinstance(source, nn.Module):
        encoder = source
    else:
        opened = source if isinstance(source, RunFolder) else open_run(source)
        encoder, name = opened.encoder(), name or opened.path.name
        known = {"weights_sha256": opened.weights()}
        distance = distance or opened.run.distance
        if images is None or (int8 and calibration is None):
            split = opened.run.data.load()
            images = split.test.x if images is None else images
            calibration = split.train.x if calibration is None else calibration
    if int8 and calibration is None:
        raise InvalidArgument("calibration", "images of the training set, which set the ranges of int8", None)
    size = shape or getattr(encoder, "shape", None)
    if size is None:
        raise InvalidArgument("shape", "(channels, height, width) for this encoder", None)
    device = next((t.device for t in encoder.state_dict().values()), torch.device("cpu"))
    if device.type != "cpu":
        encoder = copy.deepcopy(encoder).cpu()
    with frozen(encoder), torch.no_grad():
        model = _traced(tools, encoder, tuple(size), opset)
    metadata = {
        "holdfast_version": __version__, "run": name, **known, "tensors_sha256": tensors_hash(encoder),
        "input_shape": "x".join(map(str, size)), "input_range": "[0, 1]",
        "distance": "" if distance is None else type(distance).__name__,
    }  # fmt: skip
    tools.onnx.helper.set_model_props(model, metadata)
    path = _place(out)
    written = [path]
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        difference = compare(encoder, OnnxEncoder(temporary), images, tuple(size), batches)
        if not max(difference.values()) <= tolerance:
            raise InvalidArgument(
                "encoder", f"one that onnxruntime computes to within {tolerance:g}", difference
            )
    how: Literal["static", "dynamic"] | None = None
    if int8:
        written.append(path.with_name(f"{path.stem}.int8.onnx"))
        how = quantise(path, written[1], cast(Any, calibration))
    return Exported(
        path=path, int8=written[1] if int8 else None, opset=model.opset_import[0].version,
        metadata=metadata, difference=difference, quantised=how,
    )  # fmt: skip


def _place(out: str | Path) -> Path:
    path = Path(out)
    return path if path.suffix == ".onnx" else path / "encoder.onnx"


def _traced(tools: Tools, encoder: nn.Module, shape: tuple[int, ...], opset: int) -> Any:
    """Return the graph, with a free number of images and without paths of this machine."""
    dtype = next((t.dtype for t in encoder.state_dict().values() if t.is_floating_point()), torch.float32)
    example = torch.full((2, *shape), 0.5, dtype=dtype)
    try:
        with quietly():
            program = torch.onnx.export(
                _plain(encoder), (example,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=opset, verbose=False,
            )  # fmt: skip
        model = cast(Any, program).model_proto
    except Exception as error:  # whatever a user's encoder makes the exporter raise
        need = f"an encoder that torch.export can follow ({told(error)})"
        raise InvalidArgument("encoder", need, type(encoder).__name__) from error
    for item in (*model.graph.input, *model.graph.output):
        dim = item.type.tensor_type.shape.dim[0]
        if not dim.dim_param:
            raise InvalidArgument("encoder", "a graph for any number of images", dim.dim_value)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    tools.onnx.checker.check_model(model)
    return model


def compare(
    encoder: Encoder,
    other: Encoder,
    images: Images | None,
    shape: tuple[int, ...],
    batches: tuple[int, ...] = (1, 7, 32),
) -> dict[int, float]:
    """Return, for each batch size, the largest absolute difference of an embedding between two encoders."""
    found = {}
    for n in batches:
        if images is None:
            x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))
        else:
            x = images[torch.arange(n) % len(images)].cpu()
        with frozen(encoder), torch.no_grad():
            found[n] = float((encoder(x).double() - other(x).double()).abs().max())
    return found
