"""Other libraries doing the same work; each returns a function to time, or says why it is not there."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Peer = Callable[[], Any] | str
INSTALL = "not installed: pip install 'holdfast[bench]'"
VERSIONS = {
    "pytorch-metric-learning": "pytorch-metric-learning",
    "faiss": "faiss-cpu",
    "scikit-learn": "scikit-learn",
    "foolbox": "foolbox",
    "adversarial-robustness-toolbox": "adversarial-robustness-toolbox",
    "metric-learn": "metric-learn",
}
"""Peers and their names in the package index."""


def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = {}
    for name, package in VERSIONS.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def loaded(module: str) -> Any | str:
    """Import a peer, or say why that fails; peers fail in many ways, and none of them is ours."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0] == module.partition(".")[0]
        return INSTALL if missing else f"cannot be imported: {error}"
    except Exception as error:  # noqa: BLE001
        return f"cannot be imported: {type(error).__name__}: {error}"


def accuracy_calculator(z: Tensor, y: Tensor) -> Peer:
    """R@1 and MAP@R of pytorch-metric-learning, which searches with faiss; queries are the gallery."""
    module, faiss = loaded("pytorch_metric_learning.utils.accuracy_calculator"), loaded("faiss")
    if isinstance(module, str) or isinstance(faiss, str):
        return module if isinstance(module, str) else f"faiss {faiss}"
    names = ("precision_at_1", "mean_average_precision_at_r")
    made = module.AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))

    def work() -> Any:
        logging.getLogger("PML").setLevel(logging.WARNING)
        return made.get_accuracy(z, y, z, y, ref_includes_query=True)

    return work


def flat_search(z: Tensor, gallery: Tensor, k: int, threads: int) -> Peer:
    """Exact search of faiss, the gallery indexed beforehand."""
    faiss = loaded("faiss")
    if isinstance(faiss, str):
        return faiss
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery.numpy()))
    queries = np.ascontiguousarray(z.numpy())
    return lambda: index.search(queries, k)


def faiss_kmeans(z: Tensor, k: int, iterations: int, threads: int) -> Peer:
    """k-means of faiss on all rows, so many iterations from a random start."""
    faiss = loaded("faiss")
    if isinstance(faiss, str):
        return faiss
    rows = np.ascontiguousarray(z.numpy())
    every = {"max_points_per_centroid": len(z), "min_points_per_centroid": 1}

    def work() -> Any:
        faiss.omp_set_num_threads(threads)
        model = faiss.Kmeans(rows.shape[1], k, niter=iterations, seed=0, **every)
        model.train(rows)
        return model.centroids

    return work


def sklearn_kmeans(z: Tensor, k: int) -> Callable[[], Any]:
    """k-means of scikit-learn, one start."""
    from sklearn.cluster import KMeans

    rows = z.numpy()
    return lambda: KMeans(k, n_init=1, random_state=0).fit(rows).cluster_centers_


def sklearn_nca(x: NDArray[Any], y: NDArray[Any], iterations: int) -> Callable[[], Any]:
    """Neighbourhood components analysis of scikit-learn, a square matrix."""
    from sklearn.neighbors import NeighborhoodComponentsAnalysis

    made = NeighborhoodComponentsAnalysis(max_iter=iterations, random_state=0, init="identity")
    return lambda: made.fit(x, y)


def metric_learn_nca(x: NDArray[Any], y: NDArray[Any], iterations: int) -> Peer:
    """NCA of metric-learn, which 0.7.0 cannot do beside scikit-learn >= 1.8: then the row says so."""
    module = loaded("metric_learn")
    if isinstance(module, str):
        return module.replace("'holdfast[bench]'", "metric-learn")
    made = module.NCA(max_iter=iterations, random_state=0, init="identity")
    try:
        module.NCA(max_iter=1, init="identity").fit(x[:20], y[:20])
    except Exception as error:  # noqa: BLE001
        ours, theirs = metadata.version("scikit-learn"), metadata.version("metric-learn")
        return f"metric-learn {theirs} does not run beside scikit-learn {ours}: {error}"
    return lambda: made.fit(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Peer:
    """LinfPGD of foolbox on cross-entropy, without random start; returns the attacked images."""
    foolbox = loaded("foolbox")
    if isinstance(foolbox, str):
        return foolbox
    attacked = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps, random_start=False)
    criterion = foolbox.criteria.Misclassification(y)
    return lambda: attack.run(attacked, x, criterion, epsilon=eps)


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Peer:
    """ProjectedGradientDescent of the Adversarial Robustness Toolbox on cross-entropy, one batch."""
    attacks, estimators = loaded("art.attacks.evasion"), loaded("art.estimators.classification")
    if isinstance(attacks, str) or isinstance(estimators, str):
        return attacks if isinstance(attacks, str) else estimators
    classifier = estimators.PyTorchClassifier(
        model.eval(), nn.CrossEntropyLoss(), tuple(x.shape[1:]), int(y.max()) + 1, clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )  # fmt: skip
    attack = attacks.ProjectedGradientDescent(
        classifier, norm=np.inf, eps=eps, eps_step=alpha, max_iter=steps, batch_size=len(x), verbose=False
    )
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return lambda: attack.generate(images, labels)
