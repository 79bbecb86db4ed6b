r"""Scores that choose a model or a checkpoint; of every score, higher is better.

All but one do without target labels. The exception is :func:`oracle_accuracy`, which reads them and says so by its
name: what it selects is an upper bound, not a result. A label-free score is a guess about accuracy, and each has a way
to be wrong, named in its docstring. Logits have shape ``(n, K)``, features ``(n, D)``, labels ``(n,)``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from torch.nn import functional as F

from deeptransfer.diagnostics import as_rows, joint_rows, linear_classifier, split_folds

__all__ = [
    "entropy",
    "importance_weighted_risk",
    "information_maximization",
    "oracle_accuracy",
    "reverse_validation",
    "soft_neighborhood_density",
]


def entropy(logits: Tensor) -> float:
    r"""Negative mean entropy of the predictions on the target: confidence.

    .. math:: -\frac1n\sum_i H(p_i), \qquad H(p) = -\sum_k p_k\log p_k

    Fooled by a network that is confidently wrong, one that puts all into one class for instance.

    Parameters
    ----------
    logits
        Of target rows, shape ``(n, K)``.

    Returns
    -------
    float
        Between −log K and 0.

    References
    ----------
    Morerio, Cavazza and Murino, *Minimal-Entropy Correlation Alignment*, ICLR 2018.
    """
    return -_entropy(_log_probabilities(logits)).mean().item()


def information_maximization(logits: Tensor) -> float:
    r"""Entropy of the mean prediction less the mean entropy: confident on each row, diverse over the rows.

    .. math:: H\Big(\frac1n\sum_i p_i\Big) - \frac1n\sum_i H(p_i)

    This is the mutual information of row and predicted class, and the criterion this book fixes in advance. The first
    term repairs :func:`entropy`'s collapse; it expects the classes to be about equally frequent, and a confident
    permutation of the classes still fools it.

    Parameters
    ----------
    logits
        Of target rows, shape ``(n, K)``.

    Returns
    -------
    float
        Between 0 and log K.

    References
    ----------
    Krause, Perona and Gomes, *Discriminative Clustering by Regularized Information Maximization*, NeurIPS 2010;
    Musgrave, Belongie and Lim, *Benchmarking Validation Methods for Unsupervised Domain Adaptation*, arXiv 2022.
    """
    log_p = _log_probabilities(logits)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))  # (K,)
    return (_entropy(log_mean) - _entropy(log_p).mean()).item()


def soft_neighborhood_density(logits: Tensor, temperature: float = 0.05) -> float:
    r"""Soft neighbourhood density: mean entropy of the similarities of each row to all others.

    .. math:: \frac1n\sum_i H(q_i), \qquad q_{ij} \propto \exp\left(\frac1\tau
              \frac{p_i^\top p_j}{\lVert p_i\rVert \lVert p_j\rVert}\right), \quad j \ne i

    High where every row has many close neighbours, that is, where the predictions form dense clusters. One single
    cluster is the densest of all, so a collapsed network scores highest. Memory grows with n².

    Parameters
    ----------
    logits
        Of target rows, shape ``(n, K)``, three rows or more.
    temperature
        The τ; 0.05 in the paper.

    Returns
    -------
    float
        Between 0 and log(n − 1).

    References
    ----------
    Saito et al., *Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood Density*,
    ICCV 2021.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")
    p = F.normalize(_log_probabilities(logits).exp(), dim=1)
    if len(p) < 3:
        raise ValueError(f"a neighbourhood needs 3 rows or more, got {len(p)}")
    similarity = p @ p.T / temperature
    if not similarity.isfinite().all():
        raise ValueError(f"temperature {temperature} is too small: similarities divided by it are not finite")
    n = len(p)
    others = similarity[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    return _entropy(others.log_softmax(1)).mean().item()


def reverse_validation(
    source_features: Tensor, source_labels: Tensor, target_features: Tensor, target_logits: Tensor
) -> float:
    r"""Accuracy on the source of a classifier that learned only the target's predicted labels.

    .. math:: \frac1n\sum_i \mathbb{1}[h_r(x_i) = y_i], \qquad
              h_r \text{ trained on } \{(x^t_j, \arg\max_k \text{logits}_{jk})\}

    If the predictions on the target are right, the way back works as well. Here :math:`h_r` is a linear classifier on
    the network's standardised features; the papers repeat the whole adaptation backwards. What a network does wrong in
    features *and* predictions, such as exchanging two classes of the target in both, is undone on the way back and goes
    unseen.

    Parameters
    ----------
    source_features, source_labels
        Labelled source rows, ``(n, D)`` and ``(n,)``, best ones not trained on.
    target_features, target_logits
        Target rows, ``(m, D)`` and ``(m, K)``.

    Returns
    -------
    float
        Between 0 and 1.

    References
    ----------
    Zhong et al., *Cross Validation Framework to Choose Amongst Models and Datasets for Transfer Learning*, ECML 2010;
    Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016, section 5.1.2.
    """
    _check_rows(source_features=source_features, source_labels=source_labels)
    _check_rows(target_logits=target_logits, target_features=target_features)
    pseudo = _log_probabilities(target_logits).argmax(1).numpy()
    labels = _classes("source_labels", source_labels, target_logits.shape[1]).numpy()
    if len(np.unique(pseudo)) == 1:  # nothing to learn: the classifier is this constant
        return float(np.mean(labels == pseudo[0]))
    reverse = linear_classifier().fit(as_rows("target_features", target_features), pseudo)
    return float(np.mean(reverse.predict(as_rows("source_features", source_features)) == labels))


def importance_weighted_risk(
    source_logits: Tensor,
    source_labels: Tensor,
    source_features: Tensor,
    target_features: Tensor,
    control_variate: bool = True,
    folds: int = 5,
    seed: int = 0,
) -> float:
    r"""Negative cross-entropy on held-out source rows, weighted by how much each looks like the target (IWCV, DEV).

    .. math:: -\Big[\frac1n\sum_i w_i\ell_i + \eta\Big(\frac1n\sum_i w_i - 1\Big)\Big], \qquad
              w_i = \frac{n_s}{n_t}\frac{P(t \mid x_i)}{P(s \mid x_i)}, \quad
              \eta = -\frac{\operatorname{cov}(w\ell, w)}{\operatorname{var}(w)}

    The density ratio comes from a cross-fitted logistic domain classifier on standardised features: no row is weighted
    by a classifier that saw it. η = 0 is IWCV; with it (DEV) the variance of the weights is taken out. Says nothing
    where the domains do not overlap: then all weights are near 0 and so is the risk.

    Parameters
    ----------
    source_logits, source_labels, source_features
        Source rows that the network was not trained on, ``(n, K)``, ``(n,)`` and ``(n, D)``.
    target_features
        Shape ``(m, D)``.
    control_variate
        True for DEV, False for IWCV.
    folds, seed
        Of the cross-fitting.

    Returns
    -------
    float
        At most 0 for IWCV; the control variate may take it above.

    References
    ----------
    Sugiyama, Krauledat and Müller, *Covariate Shift Adaptation by Importance Weighted Cross Validation*, JMLR 2007;
    You et al., *Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation*, ICML 2019.
    """
    _check_rows(source_logits=source_logits, source_labels=source_labels, source_features=source_features)
    log_p = _log_probabilities(source_logits)
    labels = _classes("source_labels", source_labels, log_p.shape[1])
    losses = F.nll_loss(log_p, labels, reduction="none").numpy()
    if not np.isfinite(losses).all():
        raise ValueError("a source row has probability 0 for its label: its loss is infinite, and so is the risk")
    n, m = len(source_features), len(target_features)
    rows, domain = joint_rows(as_rows("source_features", source_features), as_rows("target_features", target_features))
    splits = list(split_folds(rows, domain, folds, seed))
    log_odds = cross_val_predict(linear_classifier(), rows, domain, cv=splits, method="decision_function")[:n]
    weights = n / m * np.exp(-log_odds)  # P(t|x) / P(s|x) = exp(−log odds of the source)
    weighted = weights * losses
    risk = weighted.mean()
    if control_variate and weights.var() > 0:
        eta = -np.cov(weighted, weights)[0, 1] / weights.var(ddof=1)
        risk += eta * (weights.mean() - 1)
    if not np.isfinite(risk):
        raise ValueError("a weight is not finite: some source row looks infinitely more like the target")
    return float(-risk)


def oracle_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy on target labels: not available in practice, and an upper bound for every label-free choice.

    Parameters
    ----------
    logits, labels
        Of target rows, ``(n, K)`` and ``(n,)``.

    Returns
    -------
    float
        Between 0 and 1.
    """
    _check_rows(logits=logits, labels=labels)
    predicted = _log_probabilities(logits).argmax(1)
    return (predicted == _classes("labels", labels, logits.shape[1])).double().mean().item()


def _log_probabilities(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"logits must have shape (rows, classes) with rows, got {tuple(logits.shape)}")
    log_p = logits.detach().cpu().double().log_softmax(1)
    if log_p.isnan().any():  # −∞ is a class that was ruled out; +∞ or nothing else in a row has no probabilities
        raise ValueError(
            "logits hold NaN or infinity: a score of them would still compare with others, so there is none"
        )
    return log_p


def _entropy(log_p: Tensor) -> Tensor:
    return torch.special.entr(log_p.exp()).sum(-1)


def _classes(name: str, labels: Tensor, count: int) -> Tensor:
    """Labels as integers on the CPU, checked: compared in another shape they would broadcast."""
    classes = labels.detach().cpu().long()
    if labels.ndim != 1 or (classes != labels.detach().cpu()).any():
        raise ValueError(f"{name} must be whole numbers of shape (n,), got {labels.dtype} of {tuple(labels.shape)}")
    if wrong := classes[(classes < 0) | (classes >= count)].tolist():
        raise ValueError(f"{name} must lie in 0 … {count - 1}, the classes of the logits, got {wrong[0]}")
    return classes


def _check_rows(**tensors: Tensor) -> None:
    rows = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"these belong together row by row but their lengths differ: {rows}")
