r"""Looking inside: how far apart two domains are in a network's features, layer by layer and channel by channel.

Functions take tensors or NumPy arrays of rows ``(n, D)``; classifiers are linear, standardised, seeded and scored on
folds they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

__all__ = [
    "ChannelMoments",
    "IdealJointError",
    "ProxyADistance",
    "batch_statistics",
    "channel_distance",
    "channel_moments",
    "ideal_joint_error",
    "proxy_a_distance",
    "tsne",
]

Rows = Tensor | np.ndarray


@dataclass(frozen=True)
class ProxyADistance:
    """Proxy A-distance: ``mean`` in [0, 2], and ``std``, its standard deviation over the folds."""

    mean: float
    std: float


def proxy_a_distance(source_features: Rows, target_features: Rows, folds: int = 5, seed: int = 0) -> ProxyADistance:
    r"""How well a linear classifier tells the domains apart on rows it has not seen.

    .. math:: d_A = 2(1 - 2\,\mathrm{err}), \qquad
              \mathrm{err} = \tfrac12(\mathrm{err}_S + \mathrm{err}_T)

    0: not at all; 2: without a mistake. Both domains weigh the same whatever their sizes, so chance is ½. Below chance
    counts as 0. One class of classifiers only estimates, and does not bound, the divergence in Ben-David's theorem.

    Parameters
    ----------
    source_features, target_features
        Frozen features, ``(n, D)`` and ``(m, D)``; standardised here.
    folds, seed
        Of the cross-validation; each domain needs as many rows as there are folds.

    Returns
    -------
    ProxyADistance
        ``mean`` over the folds, clipped to [0, 2], and ``std`` between them (not clipped).

    Raises
    ------
    ValueError
        If features are no rows of finite numbers of one width, or there are fewer of them than folds.

    References
    ----------
    Ben-David et al., *Analysis of Representations for Domain Adaptation*, NeurIPS 2006.
    """
    source, target = as_rows("source_features", source_features), as_rows("target_features", target_features)
    rows, domain = joint_rows(source, target)
    distances = []
    for train, test in split_folds(rows, domain, folds, seed):
        classifier = linear_classifier(class_weight="balanced").fit(rows[train], domain[train])
        wrong = classifier.predict(rows[test]) != domain[test]
        error = (wrong[domain[test] == 1].mean() + wrong[domain[test] == 0].mean()) / 2
        distances.append(2 * (1 - 2 * error))
    return ProxyADistance(float(np.clip(np.mean(distances), 0, 2)), float(np.std(distances, ddof=1)))


@dataclass(frozen=True)
class IdealJointError:
    """λ of the ideal joint hypothesis: ``mean`` = ``source_error`` + ``target_error``, and ``std`` over the folds."""

    mean: float
    std: float
    source_error: float
    target_error: float


def ideal_joint_error(
    source_features: Rows,
    source_labels: Rows,
    target_features: Rows,
    target_labels: Rows,
    folds: int = 5,
    seed: int = 0,
) -> IdealJointError:
    r"""Sum λ of both errors of the one classifier that is best for both: an oracle quantity, it reads target labels.

    .. math:: \lambda = \varepsilon_S(h^*) + \varepsilon_T(h^*), \qquad
              h^* = \arg\min_h\ \varepsilon_S(h) + \varepsilon_T(h)

    :math:`h^*` is *one* linear head on the given features, trained on both labelled domains with equal total weight and
    scored on the rows left out. Where λ is large, no head serves both domains *on these features*. Alignment changes
    the features, and λ with them, in either direction.

    Parameters
    ----------
    source_features, source_labels
        Shapes ``(n, D)`` and ``(n,)``.
    target_features, target_labels
        Shapes ``(m, D)`` and ``(m,)``.
    folds, seed
        Of the cross-validation, stratified by domain.

    Returns
    -------
    IdealJointError
        λ in [0, 2], and the two errors it is the sum of.

    Raises
    ------
    ValueError
        As :func:`proxy_a_distance`; for labels that are NaN or do not belong to the rows; where all the rows that the
        head learns from have one label.

    References
    ----------
    Ben-David et al., *A Theory of Learning from Different Domains*, Machine Learning 2010.
    """
    source, target = as_rows("source_features", source_features), as_rows("target_features", target_features)
    for name, features, labels in (("source", source, source_labels), ("target", target, target_labels)):
        if np.shape(labels) != (len(features),):
            raise ValueError(f"{name}_labels must have shape ({len(features)},), got {tuple(np.shape(labels))}")
    rows, domain = joint_rows(source, target)
    labels = np.concatenate((_labels("source_labels", source_labels), _labels("target_labels", target_labels)))
    share = np.where(domain == 1, len(rows) / (2 * len(source)), len(rows) / (2 * len(target)))
    errors = []
    for train, test in split_folds(rows, domain, folds, seed):
        if len(np.unique(labels[train])) == 1:
            raise ValueError(f"a fold leaves only label {labels[train][0]} to learn from: λ needs two classes or more")
        head = linear_classifier().fit(rows[train], labels[train], logisticregression__sample_weight=share[train])
        wrong = head.predict(rows[test]) != labels[test]
        errors.append([wrong[domain[test] == 1].mean(), wrong[domain[test] == 0].mean()])
    source_error, target_error = np.mean(errors, axis=0).tolist()
    spread = np.sum(errors, axis=1).std(ddof=1)
    return IdealJointError(source_error + target_error, float(spread), source_error, target_error)


def tsne(*samples: Rows, perplexity: float = 30.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Embed samples together in the plane by t-SNE, from a principal-components start.

    Distances between clusters and their sizes mean nothing; who is whose neighbour does. The last digits of a feature
    move points visibly, so compare a number of the same features instead, such as :func:`proxy_a_distance`.

    Parameters
    ----------
    *samples
        Rows of one width, ``(n, D)``, ``(m, D)``, …
    perplexity
        About the number of neighbours that count; less than the number of rows.
    seed
        Of scikit-learn's generator.

    Returns
    -------
    tuple of ndarray
        One ``(n, 2)`` array per sample, in the order given.

    Raises
    ------
    ValueError
        If a sample is no rows of finite numbers, widths differ, all rows are equal or of an extreme scale, or the
        perplexity does not fit.

    References
    ----------
    van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008.
    """
    arrays = [as_rows(f"sample {i}", sample) for i, sample in enumerate(samples)]
    widths = sorted({array.shape[1] for array in arrays})
    if len(widths) != 1 or widths[0] < 2:
        raise ValueError(f"the samples must have one width, 2 or more, got {widths}")
    rows = np.concatenate(arrays)
    if not 0 < perplexity < len(rows):
        raise ValueError(f"perplexity {perplexity} must be less than the number of rows, {len(rows)}, and positive")
    # scikit-learn holds squared distances in float32: beyond it they are 0 or infinite, and the process may crash.
    spread = np.ptp(rows, axis=0).max()
    if not 1e-15 < spread < 1e15:
        raise ValueError(f"the widest column spreads over {spread:.3g}: rows must differ, at a scale of about 1")
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    return tuple(np.split(plane, np.cumsum([len(array) for array in arrays])[:-1]))


class ChannelMoments(NamedTuple):
    """Mean and variance per channel, shape ``(C,)``, or one row of them per batch, ``(B, C)``."""

    mean: Tensor
    var: Tensor


def channel_moments(activations: Tensor) -> ChannelMoments:
    """Mean and (unbiased) variance of every channel of activations ``(N, C, ...)``, over all other dimensions."""
    if not activations.is_floating_point():
        raise ValueError(f"activations must be floating, got {activations.dtype}: convert them with .float()")
    if activations.ndim < 2 or activations.numel() < 2 * max(activations.shape[1], 1):
        raise ValueError(f"activations must be (N, C, ...), 2 values or more a channel, got {tuple(activations.shape)}")
    values = activations.detach().transpose(0, 1).flatten(1)  # (C, N·...)
    var, mean = torch.var_mean(values.float() if values.dtype in (torch.float16, torch.bfloat16) else values, dim=1)
    return ChannelMoments(mean, var)


def channel_distance(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], eps: float = 1e-5) -> Tensor:
    r"""TransNorm's distance between the domains, channel by channel.

    .. math:: d_j = \left|\frac{\mu_{s,j}}{\sqrt{v_{s,j} + \epsilon}}
              - \frac{\mu_{t,j}}{\sqrt{v_{t,j} + \epsilon}}\right|

    Parameters
    ----------
    source, target
        Mean and variance per channel: from :func:`channel_moments`, from :func:`batch_statistics`, or the two rows
        of a normalisation layer's running statistics.
    eps
        The ε of the layer.

    Returns
    -------
    Tensor
        Shape ``(C,)``.

    References
    ----------
    Wang et al., *Transferable Normalization: Towards Improving Transferability of Deep Neural Networks*, NeurIPS 2019.
    """
    (mean_s, var_s), (mean_t, var_t) = source, target
    shapes = [tuple(value.shape) for value in (mean_s, mean_t, var_s, var_t)]
    if len(set(shapes)) > 1:
        raise ValueError("source and target differ in shape: means {} and {}, variances {} and {}".format(*shapes))
    return (mean_s / (var_s + eps).sqrt() - mean_t / (var_t + eps).sqrt()).abs()


def batch_statistics(
    network: nn.Module, batches: Iterable[Any], layers: Iterable[str] | None = None
) -> dict[str, ChannelMoments]:
    """Mean and variance per channel of what enters the normalisation layers, batch by batch.

    Batches of two domains form two clouds in these statistics, which is AdaBN's motive. The network runs in eval mode
    and is left as it was; domain-specific layers read the domain that is in use, the target by default.

    Parameters
    ----------
    network
        Any module.
    batches
        Tensors ``(n, ...)``, or tuples that begin with one, as a loader gives them; two values or more a channel.
    layers
        Names as in ``network.named_modules()``. None: every module that keeps running statistics.

    Returns
    -------
    dict of str to ChannelMoments
        ``mean`` and ``var`` of shape ``(batches, C)`` for each layer, in the order given, on the CPU.

    Raises
    ------
    ValueError
        If a layer is unknown or not reached, no layer keeps statistics, or there is no batch.

    References
    ----------
    Li et al., *Revisiting Batch Normalization for Practical Domain Adaptation*, ICLR workshop 2017, figure 1.
    """
    modules = dict(network.named_modules())
    names = list(layers) if layers is not None else [n for n, m in modules.items() if _keeps_statistics(m)]
    if not names:
        raise ValueError("no module of the network keeps running statistics: name the layers")
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(filter(None, modules))}")
    seen: dict[str, list[ChannelMoments]] = {name: [] for name in names}
    hooks = [
        modules[name].register_forward_pre_hook(lambda _, inputs, found=found: found.append(channel_moments(inputs[0])))
        for name, found in seen.items()
    ]
    anchor = next(network.parameters(), torch.empty(0))
    try:
        with _evaluating(network), torch.no_grad():
            for batch in batches:
                network((batch if isinstance(batch, Tensor) else batch[0]).to(anchor.device))
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for name, found in seen.items() if not found]
    if missed:
        raise ValueError(f"no input reached layer {missed[0]!r}: there was no batch, or the network does not call it")
    return {
        name: ChannelMoments(*(torch.stack(values).cpu() for values in zip(*found, strict=True)))
        for name, found in seen.items()
    }


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def as_rows(name: str, features: Rows) -> np.ndarray:
    """Check features and hand them over as a float64 array ``(n, D)``, for scikit-learn."""
    if np.iscomplexobj(features) if not isinstance(features, Tensor) else features.is_complex():
        raise ValueError(f"{name} must be real, got {features.dtype}")
    array = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else np.asarray(features, float)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must have shape (rows, width) with rows, got {array.shape}: flatten it first")
    if not (np.abs(array) < 1e150).all():  # NaN is not, either
        raise ValueError(f"{name} holds values that are not finite, or whose squares would not be")
    return array


def _labels(name: str, labels: Rows) -> np.ndarray:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


def joint_rows(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows and their domain, source 1 and target 0."""
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"source and target must have one width, got {source.shape[1]} and {target.shape[1]}")
    return np.concatenate((source, target)), np.repeat([1, 0], [len(source), len(target)])


def split_folds(rows: np.ndarray, domain: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold, stratified by domain."""
    fewest = min((domain == 1).sum(), (domain == 0).sum())
    if not 2 <= folds <= fewest:
        raise ValueError(f"folds must be between 2 and the rows of the smaller domain, {fewest}, got {folds}")
    return StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, domain)


def linear_classifier(class_weight: str | None = None) -> Pipeline:
    """Standardise, then logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight=class_weight))
