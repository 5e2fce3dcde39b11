"""What is fuzzed: each parser of files or text that others may have written, with seeds that the code makes.

A target takes bytes, puts them where the parser looks, and calls the public function. It may return, or raise
a ``HoldfastError`` or an ``OSError``; everything else is a crash. The first byte of formats with check sums
says whether the rest is the whole file or only its inside, so that what lies behind the sums is reached too.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from holdfast import encoders, recipe
from holdfast.cli.options import changed
from holdfast.config import to_plain
from holdfast.data import Manifest, Omniglot
from holdfast.data.decode import decode
from holdfast.data.idx import read_idx
from holdfast.data.tabular import load_table
from holdfast.encoders.weights import read_weights
from holdfast.errors import HoldfastError
from holdfast.evaluation.stored import read_values
from holdfast.evaluation.vectors import open_vectors, read_labels
from holdfast.files import read_arrays
from holdfast.inference.index import ClusterIndex
from holdfast.leaderboard import read_entries
from holdfast.leaderboard.entries import signature
from holdfast.linear import ARML, RobustKNeighborsClassifier
from holdfast.report.certificates import read_certified, title
from holdfast.report.cluster_files import read_clustering
from holdfast.report.load import _exhibit as read_exhibit
from holdfast.report.load import _map as read_map
from holdfast.results import Record, make
from holdfast.results.record import append, read
from holdfast.runs import open_run
from holdfast.stores import FaissStore, build_faiss
from holdfast.training.checkpoint import Checkpoint

ALLOWED = (HoldfastError, OSError)
"""What a parser may raise."""
WHOLE, INSIDE = b"\0", b"\1"
torch.set_num_threads(1)


@dataclass(frozen=True)
class Target:
    """One parser: ``parse(bytes, folder)``, and what it starts from."""

    parse: Callable[[bytes, Path], object]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _png(side: int = 9, mode: str = "L") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _zip(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


# --- IDX


def _idx(data: bytes, folder: Path) -> object:
    return read_idx(_put(folder, "a.idx", data), limit=1 << 22)


def _idx_seeds() -> list[bytes]:
    plain = [
        bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(size)
        for code, shape, size in [
            (8, (2, 3), 6), (9, (4,), 4), (11, (1, 2), 4), (12, (2,), 8), (13, (1, 1, 1), 4), (14, (1,), 8),
            (8, (0, 5), 0), (8, (1 << 31, 1 << 31), 4),
        ]
    ]  # fmt: skip
    return [*plain, gzip.compress(plain[0], mtime=0)]


# --- zip of drawings


@cache
def _second_archive() -> bytes:
    return _zip({"images/B/c1/1.png": _png(), "images/B/c2/1.png": _png()})


def _omniglot(data: bytes, folder: Path) -> object:
    if data[:1] == INSIDE:
        names = data[1:2] or b"x"
        inner = f"images/A/c{names[0]}/1.png"
        data = _zip({inner: data[2:], "images/A/c/2.png": _png(), "images/A/d/2.png": _png()})
    else:
        data = data[1:]
    _put(folder, "images_background_small1.zip", data)
    second = folder / "images_background_small2.zip"
    if not second.exists():
        second.write_bytes(_second_archive())
    source = Omniglot(str(folder), size=4, train_alphabets=("A",), test_alphabets=("B",))
    return source.load()


def _omniglot_seeds() -> list[bytes]:
    members = {"images/A/c1/1.png": _png(), "images/A/c2/1.png": _png(5)}
    whole = [_zip(members), _zip(members, zipfile.ZIP_DEFLATED), _zip({"../x": b"a"})]
    return [*(WHOLE + w for w in whole), INSIDE + b"a" + _png(4), INSIDE + b"a" + _png(4, "RGBA")]


# --- arrays


def _npz(data: bytes, folder: Path) -> object:
    data = _zip({"x.npy": data[1:]}) if data[:1] == INSIDE else data[1:]
    return read_arrays(_put(folder, "a.npz", data))


def _npz_seeds() -> list[bytes]:
    arrays = [np.arange(6.0).reshape(2, 3), np.array("text"), np.array([True]), np.zeros((0, 2), "<i4")]
    members = {f"{i}.npy": _npy(a) for i, a in enumerate(arrays)}
    whole = [_zip(members), _zip(members, zipfile.ZIP_DEFLATED)]
    return [*(WHOLE + w for w in whole), *(INSIDE + _npy(a) for a in arrays)]


def _vectors(data: bytes, folder: Path) -> object:
    path = _put(folder, "z.npy", data[1:])
    return read_labels(path) if data[:1] == INSIDE else open_vectors(path)


def _vectors_seeds() -> list[bytes]:
    return [WHOLE + _npy(np.ones((3, 2), np.float32)), INSIDE + _npy(np.arange(3)), INSIDE + _npy(np.eye(2))]


# --- tables


def _libsvm(data: bytes, folder: Path) -> object:
    test = folder / "splice.t"
    if not test.exists():
        test.write_bytes(b"1 1:1 60:2\n-1 2:1\n")
    _put(folder, "splice", data)
    return load_table("splice", folder)


def _libsvm_seeds() -> list[bytes]:
    return [
        b"1 1:0.5 3:-1e3\n-1 2:7\n",
        b"1 60:1 # c\n\n-1 1:0\n",
        b"1 qid:3 1:1\n-1 2:2\n",
        b"1.0 1:nan\n2 1:1\n",
    ]


def _csv(data: bytes, folder: Path) -> object:
    return load_table(f"csv:{_put(folder, 'a.csv', data)}")


def _csv_seeds() -> list[bytes]:
    rows = b"".join(b"%d.5,%d,%d\n" % (i, -i, i % 2) for i in range(8))
    text = rows.replace(b",0\n", b",cat\n").replace(b",1\n", b",dog\n")
    return [rows, b"a,b,label\n" + text, b"\xef\xbb\xbf" + rows.replace(b",", b";"), b'"a\n"', rows[:9]]


def _manifest(data: bytes, folder: Path) -> object:
    for name in "abcd":
        if not (folder / f"{name}.png").exists():
            _put(folder, f"{name}.png", _png())
    return Manifest(_put(folder, "manifest.csv", data) and str(folder)).load()


def _manifest_seeds() -> list[bytes]:
    head = b"path,label,split\n"
    rows = b"a.png,x,train\nb.png,y,train\nc.png,z,test\nd.png,w,test\n"
    return [
        head + rows,
        b"\xef\xbb\xbf" + head + rows,
        head + b'"a.png","x,""y""",train\n',
        head + b"../a,x,test\n",
    ]


# --- encoders, weights and checkpoints


def _tensors(header: bytes, tensors: Mapping[str, torch.Tensor]) -> bytes:
    text = header.decode("utf-8", "replace")
    return save(dict(tensors), metadata={"holdfast": text})


@cache
def _encoder_file() -> tuple[bytes, dict[str, torch.Tensor], list[bytes]]:
    specs = [
        encoders.LinearEncoder(embedding_dim=2), encoders.MLP(hidden=(3,), embedding_dim=2),
        encoders.LipschitzEncoder(width=2, units=2, embedding_dim=2),
        encoders.Ensemble(members=(encoders.LinearEncoder(embedding_dim=2),) * 2), encoders.Heads(),
    ]  # fmt: skip
    built = encoders.MLP(hidden=(3,), embedding_dim=2).build((1, 2, 2), seed=0)
    headers = [
        json.dumps({"schema": 1, "spec": encoders.storage._described(s), "shape": [1, 2, 2]}).encode()
        for s in specs
    ]
    tensors = {name: t.clone() for name, t in built.state_dict().items()}
    return _tensors(headers[1], tensors), tensors, headers


def _encoder(data: bytes, folder: Path) -> object:
    data = _tensors(data[1:], _encoder_file()[1]) if data[:1] == INSIDE else data[1:]
    return encoders.load(_put(folder, "e.safetensors", data))


def _encoder_seeds() -> list[bytes]:
    whole, _, headers = _encoder_file()
    return [WHOLE + whole, *(INSIDE + h for h in headers)]


def _checkpoint(data: bytes, folder: Path) -> object:
    tensors = {"modules.w": torch.ones(2), "optimizer.0.step": torch.tensor(1.0)}
    data = _tensors(data[1:], tensors) if data[:1] == INSIDE else data[1:]
    return Checkpoint.load(_put(folder, "c.safetensors", data))


def _checkpoint_seeds() -> list[bytes]:
    meta = {"schema": 1, "step": 3, "signal": {"a": 1.0}, "settings": "abc", "seconds": 2.5}
    header = json.dumps(meta).encode()
    return [INSIDE + header, WHOLE + _tensors(header, {"modules.w": torch.ones(2)})]


def _weights(data: bytes, folder: Path) -> object:
    name = "w.safetensors" if data[:1] == INSIDE else "w.pt"
    return read_weights(_put(folder, name, data[1:]))


def _weights_seeds() -> list[bytes]:
    found = []
    for new in (True, False):
        out = io.BytesIO()
        torch.save({"w": torch.ones(2)}, out, _use_new_zipfile_serialization=new)
        found.append(WHOLE + out.getvalue())
    return [*found, INSIDE + save({"w": torch.ones(2)})]


# --- records, settings, entries


@cache
def _record_lines() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        append(path, [make(run="a", metric="recall@1", value=0.5, n=9, ci=[0.4, 0.6], time="t")])
        return path.read_bytes()


def _records(data: bytes, folder: Path) -> object:
    return read(_put(folder, "records.jsonl", data))


def _record_seeds() -> list[bytes]:
    line = _record_lines()
    return [line, line + line.replace(b"0.5", b"NaN"), line[:-9], b"{}\n", b"[[1]]\n"]


@cache
def _run_text() -> bytes:
    return json.dumps({"schema": 1, "run": to_plain(recipe("hm-ics"))}).encode()


def _run(data: bytes, folder: Path) -> object:
    _put(folder, "run.json", data)
    return to_plain(open_run(folder).run)


def _run_seeds() -> list[bytes]:
    plain = json.dumps({"schema": 1, "run": to_plain(recipe("plain"))}).encode()
    return [_run_text(), plain, plain.replace(b'"Run"', b'"PGD"'), b'{"schema": 1, "run": [1, null]}']


@cache
def _hm_ics() -> object:
    return recipe("hm-ics")


def _set(data: bytes, folder: Path) -> object:
    return changed(_hm_ics(), {}, [data.decode("utf-8", "replace")])  # type: ignore[arg-type]


def _set_seeds() -> list[bytes]:
    return [
        b"defense.search.steps=16", b"threat.eps=8/255", b"encoder=MLP", b"encoder.embedding_dim=7",
        b'threat={"type": "L2Threat", "eps": 0.5}', b"device=cpu", b"seed=1", b"data=Digits",
        b'encoder={"type": "Ensemble", "members": [{"type": "SmallCNN"}]}', b"sampler.batch_pairs=8",
        b"defense.search.alpha=none", b"threat.bounds.1=1.0", b"threat.bounds=[0, 1]", b"search=",
    ]  # fmt: skip


@cache
def _entry_content() -> bytes:
    row = json.loads(_record_lines())
    content = {
        "schema": 1, "name": "a", "recipe": "plain", "seed": 0, "training_seconds": 1.0, "version": "0",
        "commands": [], "machine": {}, "created": "", "data": {}, "weights": "", "run": {},
        "shared": row, "records": [{}],
    }  # fmt: skip
    return json.dumps(content).encode()


def _entry(data: bytes, folder: Path) -> object:
    if data[:1] == INSIDE:
        try:
            content = json.loads(data[1:])
            text = json.dumps({**content, "sha256": signature(content)}).encode()
        except (ValueError, RecursionError, TypeError, AttributeError):
            return None
    else:
        text = data[1:]
    _put(folder, "e.json", text)
    found = read_entries(folder)
    return [(e.name, e.recipe, e.seed, e.seconds) for e in found]


def _entry_seeds() -> list[bytes]:
    content = json.loads(_entry_content())
    signed = json.dumps({**content, "sha256": signature(content)}).encode()
    return [INSIDE + _entry_content(), WHOLE + signed]


# --- fitted estimators and indexes


@cache
def _knn_file() -> bytes:
    import tempfile

    x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k"
        RobustKNeighborsClassifier(n_neighbors=1).fit(x, [0, 0, 1, 1]).save(path)
        return path.read_bytes()


def _estimator(data: bytes, folder: Path) -> object:
    if data[:1] == INSIDE:
        tensors = {"learned.points_": torch.zeros(2, 2), "learned.components_": torch.eye(2)}
        data = WHOLE + _tensors(data[1:], tensors)
    path = _put(folder, "k.safetensors", data[1:])
    try:
        RobustKNeighborsClassifier.load(path)
    except ALLOWED:
        return ARML.load(path)
    return None


def _estimator_seeds() -> list[bytes]:
    whole = _knn_file()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])["__metadata__"]["holdfast"].encode()
    arml = {
        "schema": 1, "estimator": "ARML", "parameters": {},
        "learned": {"components_": {"array": "learned.components_"}, "n_features_in_": 2},
    }  # fmt: skip
    return [WHOLE + whole, INSIDE + header, INSIDE + json.dumps(arml).encode()]


@cache
def _index_file() -> tuple[bytes, dict[str, bytes], bytes]:
    import tempfile

    z = np.array([[0.0, 1], [0, 2], [5, 5], [5, 6]], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i.npz"
        ClusterIndex(n_clusters=2, n_init=1).fit(z).save(path)
        arrays = read_arrays(path)
        members = {f"{name}.npy": _npy(a) for name, a in arrays.items() if name != "header"}
        return path.read_bytes(), members, str(arrays["header"]).encode()


def _index(data: bytes, folder: Path) -> object:
    if data[:1] == INSIDE:
        text = np.array(data[1:].decode("utf-8", "replace"))
        data = _zip({**_index_file()[1], "header.npy": _npy(text)})
    elif data[:1] == b"\2":
        data = _arrays_of(INSIDE + data[1:], _index_arrays())
    else:
        data = data[1:]
    return ClusterIndex.load(_put(folder, "i.npz", data))


@cache
def _index_arrays() -> dict[str, bytes]:
    _, members, header = _index_file()
    names = {name: _npy(np.array([0, 1])) for name in ("hungarian", "majority")}
    sound = {name.removesuffix(".npy"): data for name, data in members.items()}
    words = {"header": _npy(np.array(header.decode())), "feature_names_in": _npy(np.array(["a", "b"]))}
    return {**sound, **names, **words, "silhouettes": _npy(np.array([[2.0, 0.5]]))}


def _index_seeds() -> list[bytes]:
    whole, _, header = _index_file()
    arrays = [b"\2" + seed[1:] for seed in _array_seeds(_index_arrays())[1:]]
    return [WHOLE + whole, INSIDE + header, *arrays]


# --- what a run folder holds for reports


def _arrays_of(data: bytes, sound: Mapping[str, bytes]) -> bytes:
    """Return an archive: the bytes themselves, or sound arrays of which one is exchanged, or left out."""
    if data[:1] != INSIDE:
        return data[1:]
    names = sorted(sound)
    name = names[(data[1] if len(data) > 1 else 0) % len(names)]
    rest = {name: data[2:]} if len(data) > 2 else {}
    return _zip({f"{key}.npy": value for key, value in {**sound, name: b""}.items() if value} | {
        f"{key}.npy": value for key, value in rest.items()
    })  # fmt: skip


def _array_seeds(sound: Mapping[str, bytes]) -> list[bytes]:
    whole = WHOLE + _zip({f"{name}.npy": data for name, data in sound.items()})
    places = enumerate(sorted(sound))
    return [whole, *(INSIDE + bytes([place]) + sound[name] for place, name in places), INSIDE + b"\1"]


@cache
def _exhibit_arrays() -> dict[str, bytes]:
    one, near = np.zeros((2, 1, 2, 2), np.float32), np.zeros((2, 3, 1, 2, 2), np.float32)
    ys, ds = np.zeros((2, 3), np.int64), np.ones((2, 3), np.float32)
    arrays = {
        "query": one, "attacked": one, "before_x": near, "after_x": near, "query_y": ys[:, 0],
        "ids": ys[:, 0],
        "before_y": ys, "before_d": ds, "after_y": ys, "after_d": ds, "held": np.array([True, False]),
        "eps": np.array(0.1), "class_names": np.array(["a", "b"]), "norm": np.array("linf"),
    }  # fmt: skip
    return {name: _npy(array) for name, array in arrays.items()}


def _exhibit(data: bytes, folder: Path) -> object:
    found = read_exhibit(_put(folder, "ES@0.1.npz", _arrays_of(data, _exhibit_arrays())))
    return [found.class_name(y) for y in found.rows["query_y"].tolist()], len(found)


@cache
def _map_arrays() -> dict[str, bytes]:
    z, y = np.ones((3, 2), np.float32), np.arange(3)
    arrays = {
        "gallery_z": z, "gallery_y": y, "gallery_ids": y, "query_z": z, "query_y": y, "ids": y,
        "distance": np.array("Euclidean"), "class_names": np.array(["a"]),
    }  # fmt: skip
    return {name: _npy(array) for name, array in arrays.items()}


@cache
def _moved_arrays() -> dict[str, bytes]:
    arrays = {
        "attacked_z": np.ones((3, 2), np.float32), "eps": np.array(0.1), "norm": np.array("l2"),
    }  # fmt: skip
    return {name: _npy(array) for name, array in arrays.items()}


def _map(data: bytes, folder: Path) -> object:
    place = folder / "maps"
    if not place.is_dir():
        place.mkdir()
        _put(place, "clean.npz", _zip({f"{n}.npy": d for n, d in _map_arrays().items()}))
        _put(place, "ES@0.1.npz", b"")
    if data[:1] == b"\2":  # of an attack
        _put(place, "ES@0.1.npz", _arrays_of(INSIDE + data[1:], _moved_arrays()))
        return read_map(place, [])
    other = folder / "clean"
    other.mkdir(exist_ok=True)
    _put(other, "clean.npz", _arrays_of(data, _map_arrays()))
    return read_map(other, [])


def _map_seeds() -> list[bytes]:
    moved = [b"\2" + seed[1:] for seed in _array_seeds(_moved_arrays())[1:]]
    return [*_array_seeds(_map_arrays()), *moved]


@cache
def _value_arrays() -> dict[str, bytes]:
    arrays = {"clean.rank": np.zeros(3), "attacked.rank": np.ones(3), "x": np.zeros(1)}
    return {name: _npy(array) for name, array in arrays.items()}


def _values(data: bytes, folder: Path) -> object:
    _put(folder, "ES-00000000-00000003.npz", _arrays_of(data, _value_arrays()))
    return read_values(folder)


@cache
def _cluster_arrays() -> tuple[dict[str, bytes], dict[str, bytes]]:
    z, y = np.ones((3, 2), np.float32), np.array([0, 1, 1])
    arrays = {
        "centroids": z[:2].astype(np.float64), "z": z, "cluster_of": y, "truth": y, "hungarian": y[:2],
        "majority": y[:2], "class_names": np.array(["a"]),
    }  # fmt: skip
    both = np.zeros((2, 3), np.int64)
    members = {"assigned": _npy(both), "attacked": _npy(both)}
    return {name: _npy(array) for name, array in arrays.items()}, members


def _clusters(data: bytes, folder: Path) -> object:
    if data[:1] == b"\2":
        place = folder / "members" / "evaluations" / "print"
        name, text = "members.npz", _arrays_of(INSIDE + data[1:], _cluster_arrays()[1])
    else:
        place = folder / "clusters" / "evaluations" / "print"
        name, text = "clusters.npz", _arrays_of(data, _cluster_arrays()[0])
    if not place.is_dir():
        place.mkdir(parents=True)
    _put(place, name, text)
    found = read_clustering(place.parents[1], _cluster_records())
    return [one.cluster_name(0) for one in found.stored.values()] if found else None


@cache
def _cluster_records() -> list[Record]:
    return [make(run="a", metric="flip", value=0.5, n=3, fingerprint="print")]


def _cluster_seeds() -> list[bytes]:
    members = [b"\2" + seed[1:] for seed in _array_seeds(_cluster_arrays()[1])[1:]]
    return [*_array_seeds(_cluster_arrays()[0]), *members]


@cache
def _certify_text() -> bytes:
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "spread": None}
    row = {
        "method": "arml", "k": 1, "n": 3, "seeds": [0], "clean_error": share, "certified_error": [share],
        "median": {**share, "spread": [0.4, None]}, "exact": 0.5, "certificate": "bound", "of": 9,
        "train_seconds": 1.0, "seconds": 2, "files": ["certificates/a.npz"], "alpha": None,
        "noise": {"sigma": 0.1, "samples": [2, 3], "alpha": 0.1, "seed": 0, "bound": "a"},
        "attacked": {"tried": 1, "broken": 0, "allowed": 0},
    }  # fmt: skip
    recorded = {
        "method": "itml", "k": 1, "clean_error": 0.1, "median": 0.2, "certificate": "exact",
        "provenance": "there", "certified_error": [{"radius": 0.1, "value": 0.3}],
    }  # fmt: skip
    compared = {
        "method": "arml", "baseline": "itml", "k": 1, "radius": 0.1, "difference": 0.1, "low": -1, "high": 1,
        "p_value": 0.5, "n": 3, "discordant": [1, 2],
    }  # fmt: skip
    meta = {
        "schema": 1, "rows": [row], "radii": [0.1], "failed": {"lmnn": "why"}, "recorded": [recorded],
        "comparisons": [compared], "run": {"norm": "l2", "data": "toy"},
    }  # fmt: skip
    return json.dumps(meta).encode()


@cache
def _radius_arrays() -> dict[str, bytes]:
    right = np.array([True, False, True])
    arrays = {"radius": np.array([0.1, 0, np.inf]), "correct": right, "exact": right, "upper": np.ones(3)}
    return {name: _npy(array) for name, array in arrays.items()}


def _certify(data: bytes, folder: Path) -> object:
    text, arrays = (data[1:], None) if data[:1] == b"\2" else (_certify_text(), data)
    _put(folder, "certify.json", text)
    place = folder / "certificates"
    place.mkdir(exist_ok=True)
    sound = {f"{name}.npy": d for name, d in _radius_arrays().items()}
    _put(place, "a.npz", _zip(sound) if arrays is None else _arrays_of(arrays, _radius_arrays()))
    found = read_certified(folder)
    if found is None:
        return None
    rows = [row for k in found.ks() for part in ("recorded", "comparisons") for row in found.of(part, k)]
    return found.training_seconds, [title(row["method"]) for row in rows], found.notes


def _certify_seeds() -> list[bytes]:
    return [b"\2" + _certify_text(), *_array_seeds(_radius_arrays())]


# --- indexes of galleries


@cache
def _gallery_index() -> tuple[bytes, str, bytes, dict[str, bytes]]:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        build_faiss(torch.eye(2), torch.arange(2), made)
        (file,) = Path(made).glob("*.faiss")
        rows = {name: _npy(array) for name, array in read_arrays(Path(made) / "rows.npz").items()}
        return (Path(made) / "index.json").read_bytes(), file.name, file.read_bytes(), rows


def _store(data: bytes, folder: Path) -> object:
    """The description, the arrays, or the index, which FAISS never sees unless its hash is right."""
    header, name, index, rows = _gallery_index()
    kind = data[:1]
    _put(folder, "index.json", data[1:] if kind == b"\2" else header)
    _put(folder, name, data[1:] if kind == b"\3" else index)
    arrays = _arrays_of(data if kind in (WHOLE, INSIDE) else WHOLE, rows)
    _put(folder, "rows.npz", arrays or _zip({f"{n}.npy": d for n, d in rows.items()}))
    return FaissStore.load(folder, trusted=True)


def _store_seeds() -> list[bytes]:
    header, _, index, rows = _gallery_index()
    return [b"\2" + header, b"\3" + index, *_array_seeds(rows)]


# --- images


def _image(data: bytes, folder: Path) -> object:
    return decode(_put(folder, "a.png", data), 8, upright=True)


def _image_seeds() -> list[bytes]:
    found = []
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "L"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
    ]:
        out = io.BytesIO()
        Image.new(mode, (5, 4)).save(out, kind)
        found.append(out.getvalue())
    return found


_JSON = (b'"type"', b'"schema"', b'"spec"', b"null", b"1e999", b"NaN", b"9" * 40, b"[]", b"{}", b"[[[", b'""')
_NPY = (b"'descr'", b"'|O'", b"'<f8'", b"'<U9'", b"'shape'", b"(1,)", b"()", b"nan")
TARGETS: Mapping[str, Target] = {
    "idx": Target(_idx, _idx_seeds),
    "zip": Target(_omniglot, _omniglot_seeds, (b"PK\x01\x02", b"PK\x05\x06", b"IHDR", b"../")),
    "npz": Target(_npz, _npz_seeds, (b"'descr'", b"'|O'", b"'shape'", b"(1,)", b"PK\x01\x02")),
    "npy": Target(_vectors, _vectors_seeds, (b"'descr'", b"'<f4'", b"'shape'", b"(1,)", b"-1")),
    "libsvm": Target(_libsvm, _libsvm_seeds, (b"qid:", b":", b"1e308", b"inf", b"#")),
    "csv": Target(_csv, _csv_seeds, (b'"', b";", b"1e308", b"inf", b"nan", b"\r", b"\0")),
    "manifest": Target(_manifest, _manifest_seeds, (b'"', b"../", b"/etc/", b"train", b"test", b"\0")),
    "encoder": Target(_encoder, _encoder_seeds, (*_JSON, b'"name"', b'"members"', b'"hidden"', b'"lenet"')),
    "checkpoint": Target(_checkpoint, _checkpoint_seeds, (*_JSON, b'"step"', b"healthy.")),
    "weights": Target(_weights, _weights_seeds, (b"PK\x01\x02", b"cposix\nsystem\n", b"R.", b"\x80\x02")),
    "records": Target(_records, _record_seeds, (*_JSON, b'"value"', b'"ci"')),
    "run-json": Target(_run, _run_seeds, (*_JSON, b'"PGD"', b'"encoder"', b'"LinfThreat"')),
    "set": Target(_set, _set_seeds, (*_JSON, b"=", b".0.", b"8/255", b"none")),
    "entry": Target(_entry, _entry_seeds, (*_JSON, b'"records"', b'"shared"')),
    "estimator": Target(_estimator, _estimator_seeds, (*_JSON, b'"array"', b'"texts"', b'"plain"')),
    "index": Target(_index, _index_seeds, (*_JSON, b'"facts"', b'"inertia"')),
    "exhibit": Target(_exhibit, lambda: _array_seeds(_exhibit_arrays()), _NPY),
    "map": Target(_map, _map_seeds, _NPY),
    "values": Target(_values, lambda: _array_seeds(_value_arrays()), _NPY),
    "clusters": Target(_clusters, _cluster_seeds, _NPY),
    "certify-json": Target(_certify, _certify_seeds, (*_JSON, *_NPY, b'"rows"', b'"files"', b'"median"')),
    "gallery-index": Target(_store, _store_seeds, (*_JSON, *_NPY, b'"file"', b'"size"', b"true")),
    "image": Target(_image, _image_seeds, (b"IHDR", b"tRNS", b"PLTE", b"\xff\xc0")),
}
"""Parsers by name."""
