"""Files that mean harm: commands end with code 2, one line and perhaps a hint; no trace, hang or bomb."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from holdfast import certification, encoders, recipe, run_certificates
from holdfast.config import from_plain, number, to_plain
from holdfast.data import Omniglot
from holdfast.data.decode import decode
from holdfast.data.idx import read_idx
from holdfast.data.paths import sizes_inside
from holdfast.encoders import HuggingFace
from holdfast.encoders.huggingface import _standardisation
from holdfast.encoders.weights import read_weights
from holdfast.errors import CorruptFile, DataError, HoldfastError, RunError
from holdfast.evaluation.stored import read_values
from holdfast.evaluation.vectors import open_vectors, read_labels
from holdfast.files import read_arrays, write_arrays
from holdfast.inference import ClusterIndex
from holdfast.inference.storage import check_arrays
from holdfast.leaderboard import entries
from holdfast.linear import ARML
from holdfast.linear.arml_storage import write_estimator
from holdfast.report.certificates import read_certified
from holdfast.report.history import parameters
from holdfast.report.load import load_runs
from holdfast.results import make
from holdfast.results.record import append, read
from holdfast.runs import allowed_types
from holdfast.starter.alike import pixel_hash

HANG = 5
Make = Callable[[Path], list[object]]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Stop a test that takes as long as a hang."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"more than {HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def png(size: tuple[int, int], colour: int = 0, depth: int = 8) -> bytes:
    """Return a PNG whose header says ``size``, with pixels for it: kind 0 grey, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height = size
    channels = {0: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + bytes(width * channels * depth // 8)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated as it is
    total = 1
    for _ in range(height):
        total = zlib.adler32(row, total)
    packed = b"\x78\xda" + once * height + packer.flush() + struct.pack(">I", total)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def npy(header: str, data: bytes = b"") -> bytes:
    """Return an ``.npy`` file with any header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- through the command line


def trained_on(folder: Path, name: str) -> list[object]:
    return ["train", "plain", "--data", name, "--data-dir", folder, "--out", folder / "out", "--epochs", 1]


def table(data: bytes | str, name: str = "a.csv", kind: str = "csv") -> Make:
    def make(folder: Path) -> list[object]:
        return ["certify", "--data", f"{kind}:{put(folder / name, data)}", "--out", folder / "out"]

    return make


def manifest(rows: str) -> Make:
    def make(folder: Path) -> list[object]:
        put(folder / "m" / "a.png", png((4, 4)))
        put(folder / "secret.png", png((4, 4)))
        (folder / "m" / "link.png").symlink_to(folder / "secret.png")
        put(folder / "m" / "manifest.csv", "path,label,split\n" + rows)
        return trained_on(folder / "m", "manifest")

    return make


def settings(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(folder: Path) -> list[object]:
        meta: dict[str, Any] = {"schema": 1, "run": to_plain(recipe("plain"))}
        put(folder / "run" / "run.json", json.dumps(change(meta) or meta))
        put(folder / "run" / "encoder.safetensors", b"")
        return ["evaluate", folder / "run"]

    return make


def run_text(text: str) -> Make:
    return lambda folder: ["evaluate", put(folder / "run" / "run.json", text).parent]


def records(text: str) -> Make:
    def make(folder: Path) -> list[object]:
        path = folder / "run" / "records.jsonl"
        append(path, [make_record()])
        put(path, path.read_bytes() + text.encode() + b"\n")
        return ["report", folder / "run"]

    return make


def make_record() -> Any:
    return make(run="a", metric="recall@1", value=0.5, n=9)


def changed_record(**fields: Any) -> str:
    return json.dumps({**make_record(), **fields})


def weights(spec: dict[str, Any], shape: object = (1, 8, 8)) -> Make:
    def make(folder: Path) -> list[object]:
        settings(lambda meta: meta)(folder)
        header = json.dumps({"schema": 1, "spec": spec, "shape": shape})
        data = save({"w": torch.ones(1)}, metadata={"holdfast": header})
        put(folder / "run" / "encoder.safetensors", data)
        return ["evaluate", folder / "run", "--check", "off"]

    return make


def drawings(members: dict[str, bytes]) -> Make:
    def make(folder: Path) -> list[object]:
        for name in ("images_background_small1.zip", "images_background_small2.zip"):
            put(folder / name, zipped(members))
        return trained_on(folder, "omniglot")

    return make


def settle(text: str) -> Make:
    return lambda folder: ["train", "plain", "--out", folder / "out", "--set", text]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def entry(text: str) -> Make:
    return lambda folder: ["leaderboard", put(folder / "results" / "e.json", text).parent]


class Harm:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/holdfast-was-here",)


LONG = "x" * 100_000
GALLERY: dict[str, Make] = {
    "csv of nothing": table(""),
    "csv of one giant cell": table("a,b\n" + "9" * 200_000 + ",1\n"),
    "csv of infinite labels": table("".join(f"{i},{'inf' if i % 2 else 1e300}\n" for i in range(8))),
    "csv of numbers that overflow": table("".join(f"{(-1) ** i * 1e308},{i // 2 % 2}\n" for i in range(12))),
    "csv in binary": table(os.urandom(500)),
    "csv that is a pipe": lambda folder: (
        os.mkfifo(folder / "p.csv") or ["certify", "--data",
        f"csv:{folder / 'p.csv'}"]  # type: ignore[func-returns-value]
    ),
    "csv that is a device": lambda _: ["certify", "--data", "csv:/dev/zero"],
    "npz with a pickle": table(zipped({"x.npy": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                                                    pickle.dumps(Harm()))}), "a.npz", "npz"),
    "npz that is a pickle": table(pickle.dumps(Harm()), "a.npz", "npz"),
    "manifest out of its folder": manifest("../secret.png,a,train\n"),
    "manifest with an absolute path": manifest("/etc/passwd,a,train\n"),
    "manifest of another system's path": manifest("C:\\a.png,a,train\n"),
    "manifest with a link out": manifest("link.png,a,train\na.png,b,test\n"),
    "manifest with a null byte": manifest('"a\0.png",a,train\n'),
    "manifest with a name of 100 kB": manifest(f"{LONG},a,train\n"),
    "manifest that names a row twice": manifest("a.png,a,train\na.png,b,test\n"),
    "zip that climbs out": drawings({"../../evil/x/1.png": png((3, 3))}),
    "zip that is none": lambda folder: put(folder / "images_background_small1.zip", b"PK") and
    put(folder / "images_background_small2.zip", b"PK") and trained_on(folder, "omniglot"),
    "drawing with a giant header": drawings({f"i/{a}/c/1.png": png((4, 4)).replace(
        struct.pack(">II", 4, 4), struct.pack(">II", 1 << 16, 1 << 16)) for a in ("Greek", "Latin")}),
    "settings that are text": run_text('"run"'),
    "settings of an unknown type": settings(lambda m: {"schema": 1, "run": {"type": "os.system"}}),
    "settings of another part": settings(lambda m: {"schema": 1, "run": {"type": "PGD"}}),
    "an encoder that is a number": settings(lambda m: m["run"].update(encoder=5)),
    "a seed that is text": settings(lambda m: m["run"].update(seed="now")),
    "a part in a wrong place": settings(lambda m: m["run"].update(data={"type": "PGD"})),
    "settings nested 90 times": settings(lambda m: m["run"].update(data=json.loads(deep(90)))),
    "a name of 100 kB": settings(lambda m: m["run"].update({"type": LONG})),
    "an encoder of a billion layers": weights({"name": "lipschitz", "depth": 10**9}),
    "an encoder of a million members": weights({"name": "ensemble", "members": [{"name": "linear"}] * 10**4}),
    "an encoder of another file": weights({"name": "resnet18", "weights": "/etc/passwd.pth"}),
    "an encoder with a width of 10^30": weights({"name": "linear", "embedding_dim": 10**30}),
    "an encoder for pictures of nothing": weights({"name": "linear", "embedding_dim": 2}, [0, -1, True]),
    "a record of NaN": records(changed_record(value=float("nan"))),
    "a record of 10^400": records(changed_record(value=1).replace('"value": 1', '"value": 1' + "0" * 400)),
    "a record with a name of 100 kB": records(changed_record(attack=LONG)),
    "a record that is a list": records("[1, 2]"),
    "--set with 5000 digits": settle("seed=" + "9" * 5000),
    "--set with deep JSON": settle("data=" + deep(5000)),
    "--set with NaN": settle('threat={"type": "LinfThreat", "eps": NaN}'),
    "--set with the wrong part": settle('encoder={"type": "PGD"}'),
    "--set with a list of numbers": settle("sampler=[1, 2]"),
    "--set at a position of 5000 digits": settle("threat.bounds." + "1" * 5000 + "=0"),
    "--set through a private name": settle("__class__.__init__=0"),
    "an entry changed by hand": entry(json.dumps({
        "schema": 1, "name": "a", "recipe": "b", "seed": 0, "training_seconds": 1, "shared": {},
        "records": [], "sha256": "0"})),
    "an entry that is a list": entry("[]"),
    "an entry of 1e400": entry('{"schema": 1, "seed": 1e400}'),
    "settings of 5000 digits": run_text('{"schema": ' + "9" * 5000 + "}"),
    "settings without an end": run_text(deep(100_000)),
    "settings with a name twice": run_text('{"schema": 1, "schema": 1, "run": null}'),
    "settings that are a pipe": lambda folder: (
        (folder / "e").mkdir() or os.mkfifo(folder / "e" / "x.json") or ["leaderboard",
        folder / "e"]  # type: ignore[func-returns-value]
    ),
    "a record of 5000 digits": records(changed_record().replace('"n": 9', '"n": ' + "9" * 5000)),
    "a record without an end": records(deep(100_000)),
    "npz with a torn literal": table(zipped({"x.npy": npy("{'descr': (")}), "a.npz", "npz"),
    "npz that promises a terabyte": table(zipped({"x.npy": npy(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,)}")}), "a.npz", "npz"),
    "npz with a negative shape": table(zipped({"x.npy": npy(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", bytes(8))}), "a.npz", "npz"),
}  # fmt: skip
"""Name -> what makes the files and returns the words of a command."""


def check(make_files: Make, folder: Path, holdfast: Callable[..., Any]) -> None:
    said = holdfast(*make_files(folder))
    lines = said.err.splitlines()
    errors = [line for line in lines if line.startswith("holdfast: error: ")]
    others = [line for line in lines if not line.startswith(("holdfast: error: ", "holdfast: hint: "))]
    assert said.code == 2, said
    assert len(errors) == 1, said.err
    assert not others, others
    assert "Traceback" not in said.err
    assert max(map(len, errors)) < 120_000
    assert not Path("/tmp/holdfast-was-here").exists()


@pytest.mark.parametrize("name", GALLERY)
def test_a_command_refuses_it_in_one_line(name: str, tmp_path: Path, holdfast: Callable[..., Any]) -> None:
    check(GALLERY[name], tmp_path, holdfast)


# --- through public functions


def test_weights_that_ask_for_code_or_unpack_to_more_are_refused(tmp_path: Path) -> None:
    torch.save({"w": Harm()}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(1000)}, tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert read_weights(put(tmp_path / "whole.pt", zipped(members)))["w"].sum() == 1000
    put(tmp_path / "packed.pt", zipped(members, zipfile.ZIP_DEFLATED))
    put(tmp_path / "c.pt", pickle.dumps(Harm()))
    for name, says in [
        ("a.pt", "asks for code"),
        ("packed.pt", "unpacks to more"),
        ("c.pt", "asks for code"),
    ]:
        with pytest.raises(CorruptFile, match=says):
            read_weights(tmp_path / name)
    assert not Path("/tmp/holdfast-was-here").exists()


def test_an_archive_over_several_disks_is_no_crash(tmp_path: Path) -> None:
    end = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 7) + b"PK\x05\x06" + bytes(18)
    with pytest.raises(CorruptFile):
        read_weights(put(tmp_path / "a.pt", bytes(60) + end))


def test_a_header_longer_than_the_file_or_the_limit_is_refused(tmp_path: Path) -> None:
    for length, size in [(10**15, 100), (1 << 25, (1 << 25) + 64)]:
        path = tmp_path / "a.safetensors"
        with path.open("wb") as handle:
            handle.write(length.to_bytes(8, "little"))
            handle.truncate(8 + size)  # a hole: nothing on the disk
        for read_it in (encoders.load, read_weights, ARML.load):
            with pytest.raises(CorruptFile, match="a header of"):
                read_it(path)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    encoder = encoders.LinearEncoder(embedding_dim=2).build((1, 2, 2), seed=0)
    with torch.no_grad():
        encoder.head.weight[0, 0] = float("nan")
    encoders.save(encoder, tmp_path / "e.safetensors")
    with pytest.raises(RunError, match="not finite"):
        encoders.load(tmp_path / "e.safetensors")


def test_a_header_may_ask_for_as_many_layers_as_it_has_tensors(tmp_path: Path) -> None:
    for spec in (
        encoders.MLP(hidden=(2,) * 9, embedding_dim=2),
        encoders.Ensemble(members=(encoders.LinearEncoder(embedding_dim=2),) * 3),
        encoders.Heads(count=5, member=encoders.SmallCNN(width=2, embedding_dim=2))
        if "member" in encoders.Heads.__dataclass_fields__
        else encoders.Heads(),
        encoders.LipschitzEncoder(width=2, depth=3, units=2, hidden=3, embedding_dim=2),
    ):
        encoders.save(spec.build((1, 8, 8), seed=0), tmp_path / "e.safetensors")
        assert encoders.load(tmp_path / "e.safetensors").spec == spec


def test_labels_and_vectors_are_no_larger_than_their_files(tmp_path: Path) -> None:
    good = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}"
    assert read_labels(put(tmp_path / "y.npy", npy(good, bytes(16)))).tolist() == [0, 0]
    for header in (
        good.replace("(2,)", "(10**9,)"), good.replace("2", "2" * 12), good.replace("2", "-2"),
        "{'descr': (",
        good.replace("(2,)", "(True, 2)"), good.replace("<i8", "|O"), "-" * 9000 + "1", "(" * 900,
    ):  # fmt: skip
        path = put(tmp_path / "y.npy", npy(header, bytes(16)))
        for read_it in (read_labels, open_vectors):
            with pytest.raises(CorruptFile):
                read_it(path)
    rows = "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}"
    with pytest.raises(CorruptFile):
        open_vectors(put(tmp_path / "z.npy", npy(rows, bytes(16))))
    os.mkfifo(tmp_path / "p")
    for read_it in (read_labels, open_vectors):
        with pytest.raises(DataError):
            read_it(tmp_path / "p")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    for read_it in (read_idx, read_weights, encoders.load, lambda p: decode(p, 8)):
        with pytest.raises(HoldfastError):
            read_it(tmp_path / "p")


def test_names_in_lists_stay_below_their_folder(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png", b"a")
    put(tmp_path / "secret", b"s")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in" / "loop")
    for name in ("../secret", "up/secret", "/etc/passwd", "a\0.png", "", ".", "\ud800", "x" * 10_000, "loop"):
        with pytest.raises(DataError) as caught:
            sizes_inside(tmp_path / "in", [name])
        assert len(str(caught.value)) < 800
    assert sizes_inside(tmp_path / "in", ["a.png"]) == (1,)


def test_idx_headers_that_overflow_are_refused(tmp_path: Path) -> None:
    for shape in ((1 << 31, 1 << 31, 4), (0xFFFFFFFF,) * 8, (1,) * 200, (0, 0xFFFFFFFF, 0xFFFFFFFF)):
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        with pytest.raises(CorruptFile):
            read_idx(put(tmp_path / "a", head))


def test_fields_of_settings_hold_what_they_say() -> None:
    allowed = allowed_types()
    for data in (
        {"type": "LinfThreat", "eps": "0.1"}, {"type": "LinfThreat", "eps": True},
        {"type": "PGD", "steps": 1.5},
        {"type": "LinfThreat", "eps": float("inf")}, {"type": "MLP", "hidden": [1, "a"]},
        {"type": "Ensemble", "members": [{"type": "PGD"}]}, {"type": "MLP", "normalize": None},
    ):  # fmt: skip
        with pytest.raises(HoldfastError):
            from_plain(data, allowed)
    assert from_plain({"type": "LinfThreat", "eps": 1}, allowed).eps == 1


def test_numbers_in_text_that_overflow_are_refused() -> None:
    for text in ("1e400", "1/0", "nan", "1e308/1e-308", "9" * 5000, "inf/inf"):
        with pytest.raises(HoldfastError):
            number(text)


def test_counts_of_records_fit_into_64_bits(tmp_path: Path) -> None:
    for field, value in [("n", 10**30), ("seed", -(10**30)), ("eps", 10**400), ("ci", [0, 10**400])]:
        path = put(tmp_path / "r.jsonl", changed_record(**{field: value}) + "\n")
        with pytest.raises(HoldfastError):
            read(path)


@pytest.mark.parametrize("change", [{"training_seconds": None}, {"seed": "a"}, {"name": 3}])
def test_an_entry_holds_what_it_says(change: dict[str, Any], tmp_path: Path) -> None:
    content: dict[str, Any] = {"schema": 1, "name": "a", "recipe": "b", "seed": 0, "training_seconds": 1.0}
    content |= {"shared": {}, "records": []}
    put(tmp_path / "e.json", json.dumps({**content, "sha256": entries.signature(content)}))
    (found,) = entries.read_entries(tmp_path)
    assert (found.seed, found.seconds) == (0, 1.0)
    content |= change
    put(tmp_path / "e.json", json.dumps({**content, "sha256": entries.signature(content)}))
    with pytest.raises(CorruptFile):
        entries.read_entries(tmp_path)


def test_curves_of_an_index_are_pairs_of_numbers() -> None:
    good = {"cluster_centers": np.zeros((2, 3)), "labels": np.array([0, 1])}
    check_arrays(good)
    for curve in (np.array([[np.inf, 0.0]]), np.zeros(3), np.array([["a", "b"]])):
        with pytest.raises(ValueError, match="silhouettes"):
            check_arrays({**good, "silhouettes": curve})


def test_large_pictures_give_the_same_pixels_in_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        "rgba": Image.fromarray(rng.integers(0, 256, (37, 29, 4), dtype=np.uint8), "RGBA"),
        "deep": Image.fromarray(rng.integers(0, 65536, (37, 29), dtype=np.uint16)),
        "la": Image.fromarray(rng.integers(0, 256, (37, 29, 2), dtype=np.uint8), "LA"),
    }
    palette = Image.fromarray(rng.integers(0, 256, (37, 29), dtype=np.uint8), "P")
    palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    palette.info["transparency"] = 7
    for name, picture in {**pictures, "p": palette}.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        whole = np.asarray(decode(path, 16))
        with monkeypatch.context() as patch:
            patch.setattr("holdfast.data.decode._BAND", 100)
            assert (np.asarray(decode(path, 16)) == whole).all()


# --- what a run folder holds, read for a report


def header_of(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(8, "little") + data + bytes(64)


def test_a_report_counts_no_parameters_that_a_file_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    entry = '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 8]}}'
    assert parameters(put(path, header_of(entry % "[2, 3]"))) == 6
    assert parameters(put(path, save({"w": torch.ones(5, 7), "n": torch.ones(2, dtype=torch.int64)}))) == 35
    for text in (
        deep(100_000), '{"a":' * 50_000, entry % "[1000000000000, 1000000000000, 0]",
        entry % f"[{'9' * 5000}]",
        entry % "[-2, -3]", entry % "[true, 9]", entry % "[1.5]", entry % '"ab"', entry % "7", "[]",
        "{}", "5",
        '{"a": 1}', '{"a": {"dtype": 5, "shape": [1]}}', b"\xff\xff", '{"a": {"dtype": "F32"}}',
    ):  # fmt: skip
        assert parameters(put(path, header_of(text))) is None
    assert parameters(put(path, b"\xff" * 30)) is None
    os.mkfifo(tmp_path / "p")
    assert parameters(tmp_path / "p") is None


def test_a_report_survives_a_header_of_brackets(tmp_path: Path, holdfast: Callable[..., Any]) -> None:
    append(tmp_path / "run" / "records.jsonl", [make_record()])
    put(tmp_path / "run" / "encoder.safetensors", header_of(deep(100_000)))
    said = holdfast("report", tmp_path / "run", "--out", tmp_path / "r.html", "--static")
    assert (said.code, said.err) == (0, "")


SHARE = {"value": 0.5, "low": 0.4, "high": 0.6, "spread": None}
CERTIFIED: dict[str, Any] = {
    "schema": 1, "radii": [0.1], "failed": {}, "recorded": [], "comparisons": [],
    "run": {"norm": "l2", "data": "toy"},
    "rows": [{
        "method": "arml", "k": 1, "n": 3, "seeds": [0], "clean_error": SHARE, "certified_error": [SHARE],
        "median": SHARE, "exact": 0.5, "certificate": "bound", "train_seconds": 1.0, "seconds": 2.0,
        "files": ["certificates/a.npz"],
    }],
}  # fmt: skip
RADII = {"radius": np.array([0.1, 0.0, np.inf]), "correct": np.array([True, False, True]),
         "exact": np.array([True, True, False])}  # fmt: skip


def certified_folder(folder: Path, arrays: dict[str, Any] | None = None, **fields: Any) -> Path:
    append(folder / "records.jsonl", [make_record()])
    write_arrays(folder / "certificates" / "a.npz", {**RADII, **(arrays or {})})
    put(folder / "certify.json", json.dumps({**CERTIFIED, **fields}))
    return folder


def row(**fields: Any) -> dict[str, Any]:
    return {"rows": [{**CERTIFIED["rows"][0], **fields}]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (row(files=[5]), r"rows\[0\].files\[0\]: need text"), (row(files=None), "need a list"),
        (row(files=[]), "need seeds, files"), (row(files=["a\0b"]), "need names"),
        (row(k="1"), "need a whole"),
        (row(k=True), "need a whole number"), (row(n=0), "need seeds, files"),
        (row(method=["a"]), "need text"),
        (row(median=None), "median: need an object"), (row(median={}), "median.value is missing"),
        (row(median={**SHARE, "spread": [1]}), "least and the largest"), (row(seconds="1"), "need a number"),
        (row(certified_error=[]), "need 1 shares"), (row(seeds=[]), "need seeds"),
        (row(train_seconds=1e300), "up to"),
        (row(noise={"samples": 3}), "noise.sigma is missing"), (row(attacked=5), "attacked: need an object"),
        ({"rows": [[]]}, "need an object"), ({"rows": {}}, "rows: need a list"),
        ({"radii": ["a"]}, "need a number"),
        ({"run": []}, "run: need an object"), ({"run": {"norm": []}}, "run.norm"),
        ({"failed": {"a": 1}}, "as text"),
        ({"recorded": [{"method": "a"}]}, "k is missing"), ({"comparisons": [5]}, "need an object"),
        ({"kind": 5}, "kind: need text"), ({"schema": True, "rows": 5}, "rows: need a list"),
    ],
)  # fmt: skip
def test_an_edited_certify_json_is_refused(
    fields: dict[str, Any], says: str, tmp_path: Path, holdfast: Callable[..., Any]
) -> None:
    folder = certified_folder(tmp_path / "run", **fields)
    with pytest.raises(CorruptFile, match=f"certify.json: cannot be read: .*{says}"):
        read_certified(folder)
    check(lambda _: ["report", folder], tmp_path, holdfast)


def test_a_whole_certify_json_is_read_and_poor_radii_are_left_out(
    tmp_path: Path, holdfast: Callable[..., Any]
) -> None:
    good = read_certified(certified_folder(tmp_path / "good"))
    assert good is not None
    assert (good.notes, list(good.arrays)) == ((), ["certificates/a.npz"])
    for place, arrays in enumerate([
        {"radius": np.array(1.0)}, {"radius": np.array(["a", "b", "c"])}, {"radius": np.array([1e300, 0, 0])},
        {"radius": np.array([np.nan, 0, 0])}, {"radius": -np.ones(3)}, {"exact": np.ones(2, dtype=bool)},
        {"correct": np.ones(3)}, {"upper": np.ones((3, 1))}, {name: a[:0] for name, a in RADII.items()},
    ]):  # fmt: skip
        folder = certified_folder(tmp_path / str(place), arrays)
        found = read_certified(folder)
        assert found is not None
        assert not found.arrays
        assert len(found.notes) == 1
    said = holdfast("report", folder, "--out", tmp_path / "r.html", "--static")
    assert (said.code, said.err) == (0, "")
    (folder / "certificates" / "a.npz").unlink()
    found = read_certified(folder)
    assert found is not None
    assert len(found.notes) == 1


def test_certificates_are_not_taken_up_where_the_folder_was_edited(tmp_path: Path) -> None:
    put(tmp_path / "a" / "certify.json", json.dumps({"schema": 1, "data_fingerprint": []}))
    with pytest.raises(CorruptFile, match="need data_fingerprint"):
        certification._check_folder(tmp_path / "a", "hash")
    edited = {**CERTIFIED, **row(files=[5]), "kind": "encoder"}
    put(tmp_path / "b" / "certify.json", json.dumps(edited))
    with pytest.raises(CorruptFile, match=r"files\[0\]: need text"):
        run_certificates._check(tmp_path / "b")
    sound = {"m": np.eye(2), "seconds": np.array(1.0)}
    write_arrays(tmp_path / "m.npz", sound)
    assert certification._kept_metric(tmp_path / "m.npz", 2)[1] == 1.0
    own = {"x": np.zeros((3, 2)), "y": np.array([0, 1, 1])}
    write_arrays(tmp_path / "m.npz", {**sound, **own})
    assert certification._kept_metric(tmp_path / "m.npz", 2)[0].x.shape == (3, 2)  # type: ignore[union-attr]
    for wrong in (
        {"m": np.eye(3)}, {"m": np.full((2, 2), np.nan)}, {"m": np.array([["a", "b"]] * 2)}, {"x": own["x"]},
        {"seconds": np.ones(2)}, {"seconds": np.array("1")}, {**own, "y": np.array(1)}, {"y": own["y"]},
    ):  # fmt: skip
        write_arrays(tmp_path / "m.npz", {**sound, **wrong})
        with pytest.raises(CorruptFile, match="need a metric of 2 features"):
            certification._kept_metric(tmp_path / "m.npz", 2)


def exhibit_arrays(**changes: Any) -> dict[str, Any]:
    one, near, y, d = (
        np.zeros((2, 1, 2, 2)),
        np.zeros((2, 3, 1, 2, 2)),
        np.zeros((2, 3), int),
        np.ones((2, 3)),
    )
    return {
        "query": one, "attacked": one, "before_x": near, "after_x": near, "query_y": y[:, 0], "ids": y[:, 0],
        "before_y": y, "before_d": d, "after_y": y, "after_d": d, "held": np.array([True, False]),
        "eps": np.array(0.1), "class_names": np.array(["a", "b"]), "norm": np.array("linf"), **changes,
    }  # fmt: skip


NO_TEXT = np.frombuffer(b"\xff\xff\xff\x7f", "<U1")
"""A number that is no character: str() of it is an error of Python's core."""


def test_poor_examples_and_maps_are_left_out(tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", [make_record()])
    examples, maps = tmp_path / "exhibits" / "ES@0.1.npz", tmp_path / "maps" / "clean.npz"
    z, y = np.ones((3, 2)), np.arange(3)
    sound = {"gallery_z": z, "gallery_y": y, "gallery_ids": y, "query_z": z, "query_y": y, "ids": y}
    moved = {"attacked_z": z, "eps": np.array(0.1)}
    write_arrays(examples, exhibit_arrays())
    write_arrays(maps, sound)
    write_arrays(maps.with_name("ES@0.1.npz"), moved)
    (found,) = load_runs([tmp_path])
    assert (found.notes, list(found.map_notes), list(found.exhibits)) == ([], [], ["ES@0.1"])
    assert found.maps is not None
    assert [m.eps for m in found.maps.moved] == [0.1]
    for changes in (
        {"eps": np.array(np.inf)}, {"eps": np.array(np.nan)}, {"eps": np.array(-1.0)},
        {"class_names": NO_TEXT},
        {"query_y": np.array([np.nan, 0])}, {"ids": np.array([0.5, 1])}, {"norm": NO_TEXT},
        {"before_d": np.full((2, 3), np.nan)},
    ):  # fmt: skip
        write_arrays(examples, exhibit_arrays(**changes))
        (found,) = load_runs([tmp_path])
        assert len(found.notes) == 1
        assert not found.exhibits
    for changes in (
        {"gallery_y": np.array(["a", "b", "c"])}, {"ids": y + 0.5}, {"class_names": NO_TEXT},
        {"distance": NO_TEXT},
        {"gallery_z": np.array(1.0)},
    ):  # fmt: skip
        write_arrays(maps, {**sound, **changes})
        (found,) = load_runs([tmp_path])
        assert found.maps is None
        assert len(found.map_notes) == 1
    write_arrays(maps, sound)
    for changes in ({"eps": np.array("a")}, {"eps": np.array(np.inf)}, {"norm": NO_TEXT}):
        write_arrays(maps.with_name("ES@0.1.npz"), {**moved, **changes})
        (found,) = load_runs([tmp_path])
        assert found.maps is not None
        assert not found.maps.moved
        assert len(found.map_notes) == 1


def test_values_of_queries_that_promise_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ES-00000000-00000003.npz"
    giant = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,)}")
    for name in ("attacked.rank", "unasked"):
        put(path, zipped({"clean.rank.npy": npy_of(np.zeros(3)), f"{name}.npy": giant}))
        with pytest.raises(CorruptFile, match="promises more"):
            read_values(tmp_path)


def npy_of(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


# --- fitted estimators


def test_references_of_an_estimator_are_finite_numbers(tmp_path: Path) -> None:
    learned = {
        "components_": np.eye(2), "n_features_in_": 2, "references_": np.zeros((3, 2)),
        "reference_labels_": np.array([0, 1, 1]),
    }  # fmt: skip
    write_estimator(tmp_path / "a", "ARML", {}, learned)
    assert ARML.load(tmp_path / "a").references_.shape == (3, 2)
    for name, value in [
        ("references_", np.full((3, 2), np.nan)), ("references_", np.array([["a", "b"]] * 3)),
        ("references_", np.array([[0, np.inf]] * 3)), ("components_", np.array([["a", "b"]] * 2)),
    ]:  # fmt: skip
        write_estimator(tmp_path / "a", "ARML", {}, {**learned, name: value})
        with pytest.raises(CorruptFile, match=f"{name} holds values that are not finite numbers"):
            ARML.load(tmp_path / "a")


def test_the_parts_of_an_index_fit_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ClusterIndex(n_clusters=2, n_init=1).fit(np.array([[0.0, 1], [5, 5]]), [0, 1])
    index.save(tmp_path / "i.npz")
    sound = read_arrays(tmp_path / "i.npz")
    write_arrays(tmp_path / "j.npz", {**sound, "feature_names_in": np.array(["a", "b"])})
    assert ClusterIndex.load(tmp_path / "j.npz").feature_names_in_.tolist() == ["a", "b"]
    for changes in (
        {"majority": None}, {"hungarian": None}, {"majority": np.zeros((2, 1), int)},
        {"majority": np.zeros(2)},
        {"feature_names_in": np.array(["a"])}, {"feature_names_in": np.array([1, 2])},
        {"feature_names_in": np.repeat(NO_TEXT, 2)}, {"header": NO_TEXT},
        {"header": np.array(str(sound["header"]).replace('"inertia": ', '"inertia": NaN, "x": '))},
        {"header": np.array(str(sound["header"]).replace('"inertia": ', '"inertia": true, "x": '))},
    ):  # fmt: skip
        arrays = {k: v for k, v in {**sound, **changes}.items() if v is not None}
        write_arrays(tmp_path / "j.npz", arrays)
        with pytest.raises(CorruptFile):
            ClusterIndex.load(tmp_path / "j.npz")
    for error in (OverflowError("int too large"), RuntimeError("not a dtype"), IndexError("0")):

        def raise_it(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ClusterIndex, "_restore", raise_it)
        with pytest.raises(CorruptFile, match="do not fit"):
            ClusterIndex.load(tmp_path / "i.npz")


# --- pictures that are compared


def test_pixels_are_hashed_in_bands_and_only_of_known_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rgb, grey = (rng.integers(0, 256, size, dtype=np.uint8) for size in ((37, 29, 3), (37, 29)))
    palette = Image.fromarray(grey, "P")
    palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    seen = palette.copy()
    seen.info["transparency"] = 7
    for picture in (Image.fromarray(rgb), Image.fromarray(grey), palette, seen):
        picture.save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            whole = image.convert("RGBA" if image.has_transparency_data else "RGB")
        wanted = hashlib.sha256(repr((whole.mode, whole.size)).encode() + whole.tobytes()).hexdigest()
        assert pixel_hash(tmp_path / "a.png") == wanted
        with monkeypatch.context() as patch:
            patch.setattr("holdfast.starter.alike._BAND", 100)
            assert pixel_hash(tmp_path / "a.png") == wanted
    Image.fromarray(rgb).save(tmp_path / "t.png", "TIFF")
    giant = png((4, 4)).replace(struct.pack(">II", 4, 4), struct.pack(">II", 50_000, 50_000))
    put(tmp_path / "giant.png", giant)
    put(tmp_path / "torn.png", (tmp_path / "a.png").read_bytes()[:60])
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("t", "giant", "torn", "pipe", "gone"):
        with pytest.raises(CorruptFile):
            pixel_hash(tmp_path / f"{name}.png")


# --- encoders of Hugging Face, with a stand-in for the package


class Odd(Exception):
    """An exception of the package's own."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a stand-in in place; keep the devices of the networks that are built."""
    devices: list[str] = []

    class Net(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            devices.append(torch.empty(0).device.type)
            self.config = config
            rates = torch.linspace(0, 0.1, config.num_hidden_layers).tolist()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(3, config.hidden_size) for _ in rates)
            self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, config.hidden_size))
            self.register_buffer("places", torch.arange(2 * config.places), persistent=False)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            out = sum(layer(pixel_values.mean((2, 3))) for layer in self.layers) + self.places.sum()
            return types.SimpleNamespace(last_hidden_state=out[:, None] + self.cls_token)

    def for_model(kind: str, **options: Any) -> Any:
        if "odd" in options:
            raise Odd("odd")
        found = types.SimpleNamespace(model_type=kind, num_channels=3, **options)
        found.to_dict = lambda: {"model_type": kind, **options}
        return found

    module: Any = types.ModuleType("transformers")
    module.AutoConfig = types.SimpleNamespace(for_model=for_model)
    module.AutoModel = types.SimpleNamespace(from_config=Net)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return devices


PLAIN = {"model_type": "vit", "num_hidden_layers": 2, "hidden_size": 4, "places": 3}


def test_a_saved_configuration_takes_no_more_than_its_file(built: list[str], tmp_path: Path) -> None:
    spec = HuggingFace(config=json.dumps(PLAIN), pooling="cls")
    encoder = spec.build((3, 8, 8), seed=0).eval()
    path, x = tmp_path / "e.safetensors", torch.rand(2, 3, 8, 8)
    encoders.save(encoder, path)
    built.clear()
    again = encoders.load(path).eval()
    assert built == ["meta", "cpu"]
    assert torch.equal(again(x), encoder(x))
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert all(p.requires_grad for p in again.parameters())
    again.load_state_dict(encoder.state_dict())
    assert built == ["meta", "cpu"]
    described, tensors = encoders.storage._described(encoder.spec), encoder.state_dict()
    for change, says, devices in (
        ({"hidden_size": 10**6}, "needs floating point of shape", ["meta"]),
        ({"num_hidden_layers": 300}, "missing", ["meta"]),
        ({"num_hidden_layers": 10**9}, "at most 512 as num_hidden_layers", []),
        ({"depths": [300, 300]}, "at most 512 in all as depths", []),
        ({"hidden_size": 10**12}, "at most 16777216", []),
        ({"places": 2**23 + 1}, "numbers that are not stored", ["meta"]),
        ({"odd": 1}, "settings that vit accepts", []),
        ({"model_type": "gpt2"}, "model_type", []),
    ):
        text = json.dumps({**json.loads(described["config"]), **change})
        header = {"schema": 1, "spec": {**described, "config": text}, "shape": [3, 8, 8]}
        put(path, save(dict(tensors), metadata={"holdfast": json.dumps(header)}))
        built.clear()
        with pytest.raises(RunError, match=says):
            encoders.load(path)
        assert built == devices


@pytest.mark.parametrize("text", ["9" * 5000, deep(100_000), '{"model_type": NaN}', "{", "[]", "5", '"vit"'])
def test_a_configuration_that_is_none(text: str, built: list[str]) -> None:
    with pytest.raises(HoldfastError) as caught:
        HuggingFace(config=text).build((3, 8, 8), seed=0)
    assert len(str(caught.value)) < 1500
    assert not built


def test_standardisation_of_a_folder_is_numbers(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    good: dict[str, Any] = {"image_mean": [0.5], "image_std": [0.5, 0.25, 1]}
    put(path, json.dumps(good))
    assert _standardisation(tmp_path) == ((0.5,), (0.5, 0.25, 1.0))
    for change in (
        {"image_mean": ["a"]}, {"image_mean": [True]}, {"image_mean": []}, {"image_mean": "0.5"},
        {"image_std": [[0.5]]}, {"image_std": [None]}, {"image_std": None},
        {"rescale_factor": "1/255"}, {"rescale_factor": None}, {"rescale_factor": True},
        {"rescale_factor": [1]},
    ):  # fmt: skip
        put(path, json.dumps({**good, **change}))
        with pytest.raises(CorruptFile, match=r"preprocessor_config\.json"):
            _standardisation(tmp_path)
    for text in (deep(100_000), "9" * 5000, '{"image_mean": [NaN]}'):
        with pytest.raises(CorruptFile):
            _standardisation(put(path, text).parent)


BOMBS = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import sklearn.datasets, sklearn.model_selection, sklearn.preprocessing, torch
from holdfast.data.decode import decode
from holdfast.data.idx import read_idx
from holdfast.data.tabular import load_table
from holdfast.errors import HoldfastError
from holdfast.files import read_arrays
torch.set_num_threads(1)
folder = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start, pages = peak(), int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (pages + (1 << 30),) * 2)
for name, read in [
    ("idx.gz", read_idx), ("svm", lambda p: load_table("splice", p)),
    ("rows", lambda p: load_table("splice", p)), ("bomb.npz", read_arrays),
    ("giant.png", lambda p: decode(p, 8)), ("rgba.png", lambda p: decode(p, 8, upright=True)),
    ("deep.png", lambda p: decode(p, 8)),
]:
    begun = time.process_time()
    try:
        read(folder / name)
        said = "ok"
    except HoldfastError as error:
        said = type(error).__name__
    except BaseException as error:
        said = "CRASH " + repr(error)[:200]
    print(name, said, round(time.process_time() - begun, 1), round(peak() - start), sep="\\t")
"""


def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    signal.alarm(60)  # the bombs are timed one by one, in seconds of the processor
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1024, 1024, 1024)
    zeros = gzip.compress(bytes(1 << 20), 1)
    put(tmp_path / "idx.gz", gzip.compress(head) + zeros * 1024)
    put(tmp_path / "svm" / "splice.gz", gzip.compress(b"1 1:1\n" * (1 << 17), 9) * 400)
    put(tmp_path / "rows" / "splice.gz", gzip.compress(b"1\n-1\n" * 300_000))
    for folder in ("svm", "rows"):
        put(tmp_path / folder / "splice.t", b"1 1:1\n-1 2:1\n")
    inside = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1048576,)}") + bytes(1 << 20)
    bomb = zipped({f"{n}.npy": inside for n in range(300)}, zipfile.ZIP_DEFLATED)
    put(tmp_path / "bomb.npz", bomb)
    giant = png((4, 4)).replace(struct.pack(">II", 4, 4), struct.pack(">II", 50_000, 50_000))
    put(tmp_path / "giant.png", giant)
    put(tmp_path / "rgba.png", png((5000, 5000), colour=6))
    put(tmp_path / "deep.png", png((5000, 5000), depth=16))
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60,
    )  # fmt: skip
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(found) == 7, (done.stdout, done.stderr[-2000:])
    for name, said, seconds, grown in found:
        assert said == ("ok" if name in ("rgba.png", "deep.png") else "CorruptFile"), found
        assert float(seconds) < HANG, found
        assert int(grown) < 1024 * 25 / 64, found  # the largest pictures that are read have 64 million pixels


def test_an_archive_of_drawings_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"i/A/c{n}/1.png": png((64, 64)) for n in range(4)}

    def load(archive: bytes) -> None:
        put(tmp_path / "images_background_small1.zip", archive)
        put(
            tmp_path / "images_background_small2.zip",
            zipped({f"i/B/c{n}/1.png": png((9, 9)) for n in range(2)}),
        )
        Omniglot(str(tmp_path), train_alphabets=("A",), test_alphabets=("B",)).load()

    load(zipped(members))
    twice = io.BytesIO(zipped(members))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("i/A/c0/1.png", png((9, 9)))
    with pytest.raises(CorruptFile, match="twice"):
        load(twice.getvalue())
    for name, value, says in [
        ("_PIXELS", 3 * 64 * 64, "more than 12288 pixels"), ("_DRAWINGS", 3, "4 members, limit is 3"),
    ]:  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(f"holdfast.data.omniglot.{name}", value)
            with pytest.raises(CorruptFile, match=says):
                load(zipped(members))
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.data.paths.UNPACKED", 1)
        with pytest.raises(CorruptFile, match="unpacks to"):
            load(zipped({**members, "zeros": bytes(1 << 20)}, zipfile.ZIP_DEFLATED))
