r"""Adversaries: gradient reversal, discriminators, domain confusion, soft labels, ADDA and CDAN.

Throughout, the domain label of a source row is 1 and that of a target row 0, a discriminator returns *one logit* z per
row, :math:`D(f) = \sigma(z)` is its probability of "source", and the two domains weigh the same whatever their sizes:

.. math:: \ell(z) = \tfrac12 \Big( \frac1{n_s} \sum_{i \in s} -\log \sigma(z_i)
          + \frac1{n_t} \sum_{j \in t} -\log (1 - \sigma(z_j)) \Big).

With equal parts that is the mean over the joint batch, as released code takes it; the DANN paper sums the two means,
so its :math:`\lambda` is half of ours. The discriminator sees both domains in one batch, which one with batch
normalisation needs: a batch of one domain would tell it the answer. A discriminator computes in the dtype of its
weights, which the features must share; its logits are brought to float32, so losses are float32, or float64 if the
logits are. NaN and infinity in the features come out as NaN: a look at values would wait for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

__all__ = [
    "AdversarialDiscriminativeLoss",
    "ConditionalDomainAdversarialLoss",
    "DomainAdversarialLoss",
    "DomainConfusionLoss",
    "DomainDiscriminator",
    "MultilinearMap",
    "SoftLabelLoss",
    "dann_lambda",
    "gradient_reversal",
]


# ---------------------------------------------------------------------------------------------------------------------
# Schedule
# ---------------------------------------------------------------------------------------------------------------------


def dann_lambda(progress: float) -> float:
    r"""Weight of the reversed gradient as training advances.

    .. math:: \lambda_p = \frac{2}{1 + \exp(-10 p)} - 1

    Parameters
    ----------
    progress
        :math:`p \in [0, 1]`, the share of training that is done, given by the loop.

    Returns
    -------
    float
        0 at the start, 0.9999 at the end.

    Raises
    ------
    ValueError
        If ``progress`` is outside [0, 1].

    References
    ----------
    Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016, section 5.2.2.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], got {progress}: give the step divided by the number of steps")
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Gradient reversal and the discriminator
# ---------------------------------------------------------------------------------------------------------------------


def gradient_reversal(x: Tensor, lambda_: float | Tensor = 1.0) -> Tensor:
    r"""The identity, whose gradient is :math:`-\lambda` times the incoming one.

    .. math:: R_\lambda(x) = x, \qquad \frac{\mathrm d R_\lambda}{\mathrm d x} = -\lambda I

    Parameters
    ----------
    x
        Any floating tensor.
    lambda_
        The coefficient, stated at every call: there is no counter that evaluation could advance or a checkpoint lose.
        A number is checked; a tensor, which may live on a GPU, is not.

    Returns
    -------
    Tensor
        Equal to ``x``, same shape and dtype. Entries that are not finite have gradient 0.

    Raises
    ------
    ValueError
        If ``lambda_`` is a number that is negative or not finite, which would be no reversal, or a tensor of a shape
        that does not fit, or if ``x`` is not floating.

    References
    ----------
    Ganin and Lempitsky, *Unsupervised Domain Adaptation by Backpropagation*, ICML 2015.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}: nothing else has a gradient")
    if isinstance(lambda_, Tensor):
        lambda_ = lambda_.detach().to(x.dtype)
        if lambda_.dim() > x.dim() or any(
            s not in (1, t) for s, t in zip(lambda_.shape[::-1], x.shape[::-1], strict=False)
        ):
            raise ValueError(f"lambda_ of shape {tuple(lambda_.shape)} does not fit x of shape {tuple(x.shape)}")
    elif not 0 <= lambda_ < math.inf:
        raise ValueError(
            f"lambda_ must be at least 0 and finite, got {lambda_}: the sign is turned by the reversal itself"
        )
    # Of plain operations, so that every transform knows it: vmap, jvp, torch.compile, a second derivative.
    value = x.detach()
    return value + (x - value).nan_to_num() * -lambda_  # x + 0; a class ruled out by −∞ stays so


class DomainDiscriminator(nn.Sequential):
    r"""Multilayer perceptron with two hidden layers and one logit: the discriminator of DANN and CDAN.

    There is no sigmoid at the end: the losses take the logit, where :math:`\log\sigma` is exact and keeps a gradient.

    Parameters
    ----------
    in_features
        Width :math:`d` of the features.
    hidden
        Width of both hidden layers.
    batch_norm
        Normalise each hidden layer. Its training batches must then hold both domains, as all losses here see to.

    Shape
    -----
    ``(n, d)`` → ``(n,)``.

    References
    ----------
    Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016.
    Long et al., *Conditional Adversarial Domain Adaptation*, NeurIPS 2018.
    """

    def __init__(self, in_features: int, hidden: int = 1024, batch_norm: bool = False) -> None:
        if in_features < 1 or hidden < 1:
            raise ValueError(f"in_features and hidden must be at least 1, got {in_features} and {hidden}")
        layers: list[nn.Module] = []
        for width in (in_features, hidden):
            layers += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if batch_norm else []), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, 1))
        self.in_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Logit of "source" for each row, shape ``(n,)``."""
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(
                f"this discriminator takes features of shape (n, {self.in_features}), got {tuple(features.shape)}: "
                "flatten them, or build it with their width"
            )
        return super().forward(features).squeeze(1)  # (n, 1) -> (n,)


# ---------------------------------------------------------------------------------------------------------------------
# What the losses share
# ---------------------------------------------------------------------------------------------------------------------


def _joint(source: Tensor, target: Tensor) -> Tensor:
    """The two parts as one batch, source rows first."""
    if source.device != target.device:
        raise ValueError(f"the source part is on {source.device} and the target part on {target.device}: move one")
    for name, part in (("source", source), ("target", target)):
        if part.dim() != 2 or part.shape[0] == 0:
            raise ValueError(f"the {name} part must have shape (n, d) with n at least 1, got {tuple(part.shape)}")
        if not part.is_floating_point():
            raise ValueError(f"the {name} part must be floating point, got {part.dtype}: convert it with .float()")
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"source and target differ in width: {source.shape[1]} and {target.shape[1]}; take both from the same layer"
        )
    return torch.cat([source, target])


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits in float32; float32 and float64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def negative_entropy(log_g: Tensor) -> Tensor:
    """Per row, −H(g) = Σ g log g; a class of probability 0 adds 0 and has no gradient."""
    return (log_g.exp() * log_g.clamp(min=torch.finfo(log_g.dtype).min)).sum(1)


def _domain_logits(discriminator: Callable[[Tensor], Tensor], joint: Tensor, n_source: int) -> tuple[Tensor, Tensor]:
    """Logits of the source rows and of the target rows, from one pass of the joint batch."""
    logits = discriminator(joint)
    if logits.numel() != len(joint) or logits.dim() < 1 or len(logits) != len(joint):
        raise ValueError(
            f"the discriminator returned {logits.numel()} values for {len(joint)} rows, shape {tuple(logits.shape)}: "
            "it must end in one logit"
        )
    logits = full_precision(logits.reshape(-1))
    # A ReLU would swallow a −∞, and the loss would be a number: a row that is not finite makes its logit NaN.
    logits = logits + 0 * joint.detach().sum(1, dtype=logits.dtype)
    return logits[:n_source], logits[n_source:]


def _negative_log_likelihood(logits: Tensor, label: float) -> Tensor:
    """Per row, −label·log σ(z) − (1 − label)·log(1 − σ(z))."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def _domain_loss(logits_source: Tensor, logits_target: Tensor) -> Tensor:
    source, target = _negative_log_likelihood(logits_source, 1.0), _negative_log_likelihood(logits_target, 0.0)
    return (source.mean() + target.mean()) / 2


def _with_fixed_state(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module as a function of its input alone: parameters are constants, running statistics stay as they are."""
    state = {name: p.detach() for name, p in module.named_parameters()}
    state |= {name: b.clone() for name, b in module.named_buffers()}
    return lambda x: functional_call(module, state, (x,))


# ---------------------------------------------------------------------------------------------------------------------
# DANN
# ---------------------------------------------------------------------------------------------------------------------


class DomainAdversarialLoss(nn.Module):
    r"""DANN: the discriminator's loss, reached by the features through a gradient reversal.

    .. math:: L = \ell\big(D(R_\lambda(f))\big)

    One ``backward`` lowers the loss in :math:`\theta_D` with weight 1 and raises it in the features with weight
    :math:`\lambda`.

    Parameters
    ----------
    discriminator
        Maps ``(n, d)`` to one logit per row, such as :class:`DomainDiscriminator`.

    Shape
    -----
    Features ``(n_s, d)`` and ``(n_t, d)``; the loss is a scalar.

    References
    ----------
    Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, features_source: Tensor, features_target: Tensor, lambda_: float | Tensor = 1.0) -> Tensor:
        """Loss of the discriminator, with the features' gradient reversed and multiplied by ``lambda_``.

        Raises
        ------
        ValueError
            If a part is empty, not of shape (n, d) or not floating point, widths differ, or ``lambda_`` is negative.
        """
        joint = gradient_reversal(_joint(features_source, features_target), lambda_)  # (n_s + n_t, d)
        return _domain_loss(*_domain_logits(self.discriminator, joint, len(features_source)))


# ---------------------------------------------------------------------------------------------------------------------
# Two losses instead of one reversal: domain confusion and ADDA
# ---------------------------------------------------------------------------------------------------------------------


class DomainConfusionLoss(nn.Module):
    r"""Domain confusion: the features ask for a discriminator that is *uncertain*, not for one that is wrong.

    .. math::
        L_D = \ell\big(D(\bar f)\big), \qquad
        L_{conf} = -\sum_{d \in \{s, t\}} \tfrac12 \log q_d(f; \bar\theta_D), \qquad
        q_s = \sigma(z),\; q_t = 1 - \sigma(z)

    averaged over the rows of each domain. The bar marks what is held fixed: the gradient of :math:`L_D` reaches only
    the discriminator, that of :math:`L_{conf}` only the features. The two are alternated and are no gradient
    reversal, yet because no gradient crosses over, both may stand in one ``backward``.

    Parameters
    ----------
    discriminator
        Maps ``(n, d)`` to one logit per row.

    Shape
    -----
    Features ``(n_s, d)`` and ``(n_t, d)``; a dict of two scalars, ``discriminator`` and ``confusion``.

    References
    ----------
    Tzeng et al., *Simultaneous Deep Transfer Across Domains and Tasks*, ICCV 2015, equations 3 to 5.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, features_source: Tensor, features_target: Tensor) -> dict[str, Tensor]:
        """Return the two losses by name.

        Raises
        ------
        ValueError
            If a part is empty, not two-dimensional or not floating point, or if the widths differ.
        """
        joint = _joint(features_source, features_target)  # (n_s + n_t, d)
        z_source, z_target = _domain_logits(_with_fixed_state(self.discriminator), joint, len(features_source))
        # The cross-entropy to the uniform distribution over the two domains is that to the label ½.
        source, target = _negative_log_likelihood(z_source, 0.5), _negative_log_likelihood(z_target, 0.5)
        return {
            "discriminator": _domain_loss(*_domain_logits(self.discriminator, joint.detach(), len(features_source))),
            "confusion": (source.mean() + target.mean()) / 2,
        }


class AdversarialDiscriminativeLoss(nn.Module):
    r"""ADDA: a target encoder, started from the source's, learns to have its features taken for source.

    .. math::
        L_D = \ell\big(D(\bar f)\big), \qquad
        L_M = \frac1{n_t} \sum_{j \in t} -\log \sigma\big(z(f_j; \bar\theta_D)\big)

    :math:`L_M` inverts the label instead of the gradient: where the discriminator is certain, the gradient does not
    vanish. Give the source features of the *fixed* source encoder. The gradient of :math:`L_D` reaches only the
    discriminator, that of :math:`L_M` only the target features, so one ``backward`` serves two optimisers.

    Parameters
    ----------
    discriminator
        Maps ``(n, d)`` to one logit per row.

    Shape
    -----
    Features ``(n_s, d)`` and ``(n_t, d)``; a dict of two scalars, ``discriminator`` and ``encoder``.

    References
    ----------
    Tzeng et al., *Adversarial Discriminative Domain Adaptation*, CVPR 2017, equations 5 and 9.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, features_source: Tensor, features_target: Tensor) -> dict[str, Tensor]:
        """Return the two losses by name.

        Raises
        ------
        ValueError
            If a part is empty, not two-dimensional or not floating point, or if the widths differ.
        """
        joint = _joint(features_source.detach(), features_target)  # (n_s + n_t, d)
        _, z_target = _domain_logits(_with_fixed_state(self.discriminator), joint, len(features_source))
        return {
            "discriminator": _domain_loss(*_domain_logits(self.discriminator, joint.detach(), len(features_source))),
            "encoder": _negative_log_likelihood(z_target, 1.0).mean(),
        }


class SoftLabelLoss(nn.Module):
    r"""Soft labels: a labelled target image is to resemble the classes that its class resembles at the source.

    .. math::
        l^{(k)} = \frac1{n_k} \sum_{i \in s,\, y_i = k} \mathrm{softmax}(z_i / \tau), \qquad
        L_{soft} = -\frac1n \sum_{j} \sum_c l^{(y_j)}_c \log \mathrm{softmax}_c(z_j / \tau)

    The prediction is softened by the same :math:`\tau`, and there is no factor :math:`\tau^2`. Collect the soft labels
    with :meth:`update` over the source training images; they are buffers, so a checkpoint holds them.

    Parameters
    ----------
    num_classes
        Number of classes :math:`C`.
    temperature
        :math:`\tau > 0`; above 1 it keeps the small probabilities, which tell the classes' likeness.

    Shape
    -----
    Logits ``(n, C)``, labels ``(n,)`` of integers; the loss is a scalar, float32 or better. Sums are taken in float32
    also where the buffers are of half precision.

    References
    ----------
    Tzeng et al., *Simultaneous Deep Transfer Across Domains and Tasks*, ICCV 2015, section 4.2.
    """

    soft_labels: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, temperature: float = 2.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.num_classes, self.temperature = num_classes, temperature
        self.register_buffer("soft_labels", torch.zeros(num_classes, num_classes))  # row k is l^(k)
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))

    def reset(self) -> None:
        """Forget all source images."""
        self.soft_labels.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def update(self, logits_source: Tensor, labels_source: Tensor) -> None:
        """Merge one batch of source predictions into the class means.

        Raises
        ------
        ValueError
            If the shapes do not fit or a label is outside 0 … C−1.
        """
        self._check(logits_source, labels_source)
        means = full_precision(self.soft_labels)
        soft = self._log_softmax(logits_source).exp().to(means.dtype)  # (n, C)
        sums = torch.zeros_like(means).index_add_(0, labels_source, soft)
        added = torch.bincount(labels_source, minlength=self.num_classes)
        self.counts += added
        # A running mean, not a running sum: it keeps its precision over a large source domain.
        means = means + (sums - added[:, None] * means) / self.counts.clamp(min=1)[:, None]
        self.soft_labels.copy_(means)

    def forward(self, logits_target: Tensor, labels_target: Tensor) -> Tensor:
        """Cross-entropy of labelled target predictions to the soft labels of their classes.

        Raises
        ------
        ValueError
            If the shapes do not fit, a label is outside 0 … C−1, or :meth:`update` never saw its class.
        """
        self._check(logits_target, labels_target)
        if unseen := sorted(set(labels_target[self.counts[labels_target] == 0].tolist())):
            raise ValueError(f"there is no soft label for class {unseen[0]}: give its source images to update() first")
        soft = self.soft_labels[labels_target]  # (n, C)
        terms = (soft * self._log_softmax(logits_target)).masked_fill(soft == 0, 0.0)  # 0 · log 0 = 0
        return -terms.sum(1).mean()

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f"{self.num_classes}, temperature={self.temperature}"

    def _log_softmax(self, logits: Tensor) -> Tensor:
        return F.log_softmax(full_precision(logits) / self.temperature, dim=1)

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        # The one place here where values are looked at: a wrong label would be silently another class, or stop the GPU.
        if not logits.is_floating_point():
            raise ValueError(f"logits must be floating point, got {logits.dtype}: convert them with .float()")
        if logits.dim() != 2 or logits.shape[1] != self.num_classes or len(logits) == 0:
            raise ValueError(f"logits must have shape (n, {self.num_classes}), n at least 1; got {tuple(logits.shape)}")
        if labels.shape != logits.shape[:1] or labels.dtype != torch.long:
            raise ValueError(
                f"labels must be {len(logits)} integers (torch.long), got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if wrong := labels[(labels < 0) | (labels >= self.num_classes)].tolist():
            raise ValueError(f"labels must lie in 0 … {self.num_classes - 1}, got {wrong[0]}: set num_classes to fit")


# ---------------------------------------------------------------------------------------------------------------------
# CDAN
# ---------------------------------------------------------------------------------------------------------------------


class MultilinearMap(nn.Module):
    r"""Feature and prediction as one vector: the outer product, or its random projection where that is too wide.

    .. math::
        T_\otimes(f, g) = f \otimes g, \qquad
        T_\odot(f, g) = \tfrac1{\sqrt{d_r}} (R_f f) \odot (R_g g), \quad d_r = 1024

    The entries of :math:`R_f, R_g` are standard normal, drawn once on the CPU and kept as buffers, so that a checkpoint
    reloads the discriminator together with the space it was trained in. Inner products are kept in expectation:
    :math:`\mathrm E \langle T_\odot(f, g), T_\odot(f', g') \rangle = \langle f, f' \rangle \langle g, g' \rangle`.

    Parameters
    ----------
    in_features
        Width :math:`d` of the features.
    num_classes
        Number of classes :math:`C`.
    randomized
        None decides as the paper does: random when :math:`d \cdot C > 4096`.

    Attributes
    ----------
    out_features
        Width of the result: what the discriminator must take.

    Shape
    -----
    ``(n, d)`` and ``(n, C)`` → ``(n, out_features)``.

    References
    ----------
    Long et al., *Conditional Adversarial Domain Adaptation*, NeurIPS 2018, equations 5 to 7.
    """

    random_features: Tensor
    random_classes: Tensor

    def __init__(self, in_features: int, num_classes: int, randomized: bool | None = None) -> None:
        super().__init__()
        if in_features < 1 or num_classes < 1:
            raise ValueError(f"in_features and num_classes must be at least 1, got {in_features} and {num_classes}")
        self.in_features, self.num_classes = in_features, num_classes
        self.randomized = in_features * num_classes > 4096 if randomized is None else randomized
        self.out_features = 1024 if self.randomized else in_features * num_classes
        if self.randomized:
            self.register_buffer("random_features", torch.randn(in_features, self.out_features))
            self.register_buffer("random_classes", torch.randn(num_classes, self.out_features))

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Combine each row of ``features`` with the same row of ``probabilities``.

        Raises
        ------
        ValueError
            If a width is not the one this map was built for, the numbers of rows differ, or one is not floating.
        """
        n = len(features)
        if features.shape != (n, self.in_features) or probabilities.shape != (n, self.num_classes):
            raise ValueError(
                f"this map takes features (n, {self.in_features}) and probabilities (n, {self.num_classes}), same n, "
                f"got {tuple(features.shape)} and {tuple(probabilities.shape)}"
            )
        if not (features.is_floating_point() and probabilities.is_floating_point()):
            raise ValueError(f"this map takes floating rows, got {features.dtype} and {probabilities.dtype}")
        probabilities = probabilities.to(features.dtype)
        if self.randomized:
            product = (features @ self.random_features) * (probabilities @ self.random_classes)
            return product / math.sqrt(self.out_features)
        return (features[:, :, None] * probabilities[:, None, :]).flatten(1)  # (n, d, C) -> (n, d·C)

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f"{self.in_features}, {self.num_classes}, out_features={self.out_features}, randomized={self.randomized}"


class ConditionalDomainAdversarialLoss(nn.Module):
    r"""CDAN, and CDAN+E: the discriminator sees feature and prediction together.

    .. math::
        L = \tfrac12 \Big( \frac1{n_s} \sum_{i \in s} \tilde w_i \, [-\log \sigma(z_i)]
            + \frac1{n_t} \sum_{j \in t} \tilde w_j \, [-\log (1 - \sigma(z_j))] \Big), \qquad
        z = D\big(T(R_\lambda(f), \bar g)\big), \quad g = \mathrm{softmax}(\text{logits}), \quad w = 1 + e^{-H(g)}

    The prediction that conditions is detached. CDAN has :math:`\tilde w = 1`; CDAN+E lets certain rows count more, and
    three normalisations of the weights are in use:

    * ``"per-domain"``: :math:`\tilde w = w / \mathrm{mean}(w)`, the mean over the row's own domain: the authors' code;
    * ``"joint"``: the mean over both domains: TLlib;
    * ``"max"``: :math:`\tilde w = w / \max(w)` within the row's own domain.

    The denominators carry no gradient. The weights do: in the authors' code it reaches the logits, reversed and
    multiplied by :math:`\lambda` as well; ``detach_weights=True`` stops it, as TLlib does.

    Parameters
    ----------
    discriminator
        Maps ``(n, multilinear_map.out_features)`` to one logit per row.
    multilinear_map
        Joins feature and prediction.
    weighting
        None for CDAN; the normalisation of the weights for CDAN+E.
    detach_weights
        Stop the gradient through the weights.

    Shape
    -----
    Features ``(n_s, d)`` and ``(n_t, d)``, logits ``(n_s, C)`` and ``(n_t, C)``; the loss is a scalar.

    References
    ----------
    Long et al., *Conditional Adversarial Domain Adaptation*, NeurIPS 2018, equations 8 and 9.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        multilinear_map: MultilinearMap,
        weighting: Literal["per-domain", "joint", "max"] | None = None,
        detach_weights: bool = False,
    ) -> None:
        super().__init__()
        if weighting not in (None, "per-domain", "joint", "max"):
            raise ValueError(f"weighting must be None, 'per-domain', 'joint' or 'max', got {weighting!r}")
        self.discriminator, self.multilinear_map = discriminator, multilinear_map
        self.weighting, self.detach_weights = weighting, detach_weights

    def forward(
        self,
        features_source: Tensor,
        features_target: Tensor,
        logits_source: Tensor,
        logits_target: Tensor,
        lambda_: float | Tensor = 1.0,
    ) -> Tensor:
        """Loss of the discriminator, with the gradient of features and weights reversed and multiplied by ``lambda_``.

        Raises
        ------
        ValueError
            If a part is empty or not floating point, a width does not fit the map, or ``lambda_`` is negative.
        """
        n_source = len(features_source)
        features = gradient_reversal(_joint(features_source, features_target), lambda_)  # (n_s + n_t, d)
        logits = full_precision(_joint(logits_source, logits_target))  # (n_s + n_t, C)
        if len(logits_source) != n_source:
            raise ValueError(f"there are {n_source} rows of source features but {len(logits_source)} of source logits")

        joined = self.multilinear_map(features, logits.detach().softmax(1))
        z_source, z_target = _domain_logits(self.discriminator, joined, n_source)
        losses = torch.cat([_negative_log_likelihood(z_source, 1.0), _negative_log_likelihood(z_target, 0.0)])
        if self.weighting is not None:
            logits = logits.detach() if self.detach_weights else gradient_reversal(logits, lambda_)
            losses = losses * self._weights(logits, n_source)
        return (losses[:n_source].mean() + losses[n_source:].mean()) / 2

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f"weighting={self.weighting!r}, detach_weights={self.detach_weights}"

    def _weights(self, logits: Tensor, n_source: int) -> Tensor:
        """1 + exp(−H(g)) of each row, divided by a number that carries no gradient."""
        log_g = logits.log_softmax(1)
        weights = 1 + torch.exp(negative_entropy(log_g))
        if self.weighting == "joint":
            return weights / weights.detach().mean()
        scale = torch.mean if self.weighting == "per-domain" else torch.max
        return torch.cat([w / scale(w.detach()) for w in weights.tensor_split((n_source,))])
