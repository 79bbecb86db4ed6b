"""Tent's successors: learn from the reliable predictions of a batch only, and notice when learning goes wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .test_time import Tent, entropies, logits_of


class _Selective(Tent):
    """Tent with momentum instead of Adam, on the rows whose entropy is below a share of its largest value."""

    others = (nn.GroupNorm, nn.LayerNorm)

    def __init__(self, model: nn.Module, lr: float, threshold: float, momentum: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a share of the largest entropy, in (0, 1]; got {threshold}")
        self.threshold, self.momentum = threshold, momentum
        super().__init__(model, lr)

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)

    def _margin(self, logits: Tensor) -> float:
        return self.threshold * math.log(logits.shape[1])


class EATA(_Selective):
    r"""Tent on the rows that are reliable and not redundant, held to its start where the source needs it.

    .. math:: L = \frac{1}{|S|} \sum_{i \in S} e^{E_0 - H_i} H_i + \alpha \sum_j F_j (\theta_j - \theta_{j0})^2

              S = \{i : H_i < E_0,\; |\cos(\bar p, p_i)| < d\}

    with the entropy :math:`H_i` of the prediction :math:`p_i`; the factor :math:`e^{E_0 - H_i}` carries no gradient.
    After each batch :math:`\bar p \leftarrow 0.9\,\bar p + 0.1\,\mathrm{mean}_{S}\,p_i`; in the first, which has no
    :math:`\bar p` yet, every reliable row counts. One step of SGD with momentum a batch; a batch without such rows
    takes none. The mean divides by the rows that were *selected*: one row moves the network as far as 64 do.

    Parameters
    ----------
    model
        As :class:`Tent`'s; scale and shift of GroupNorm and LayerNorm are adapted, too, and a network that has only
        these is not normalised by its batch.
    lr, momentum
        Of SGD.
    threshold
        :math:`E_0 / \ln C`, with C classes.
    similarity
        d in (0, 1].
    weight
        α. It acts once :meth:`remember` has measured F.

    Shape
    -----
    What the model takes → logits ``(n, C)``, those before the step.

    Notes
    -----
    The defaults are those of the released code for ImageNet. A row of NaN is not reliable.

    References
    ----------
    S. Niu, J. Wu, Y. Zhang, Y. Chen, S. Zheng, P. Zhao, M. Tan. Efficient Test-Time Model Adaptation without
    Forgetting. ICML 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 2.5e-4,
        threshold: float = 0.4,
        similarity: float = 0.05,
        weight: float = 2000.0,
        momentum: float = 0.9,
    ) -> None:
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity bounds a cosine, so it lies in (0, 1]; got {similarity}")
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.similarity, self.weight = similarity, weight
        super().__init__(model, lr, threshold, momentum)
        self.importance: list[Tensor] = []

    def reset(self) -> None:
        """Return to the start, and forget the optimiser's state and the mean prediction; F stays."""
        super().reset()
        self.mean_prediction: Tensor | None = None

    def remember(self, batches: Iterable[Tensor]) -> None:
        r"""Measure the importance F of each adapted parameter on images like the source's; no label is read.

        .. math:: F_j = \frac1B \sum_b \Big(\frac{\partial}{\partial\theta_j} \frac{1}{n_b} \sum_{i \in b}
                        -\log p_i(\hat y_i)\Big)^2, \qquad \hat y_i = \arg\max_c p_i(c)

        Parameters
        ----------
        batches
            B batches of inputs.

        Raises
        ------
        ValueError
            When there is no batch, or one whose gradient is not finite.
        """
        squares, count = [torch.zeros_like(moved) for moved in self._moved], 0
        for x in batches:
            with self._statistics(), torch.inference_mode(False), torch.enable_grad():
                logits = logits_of(self.model, x)
                gradients = self._gradients(F.cross_entropy(logits, logits.argmax(1)))
            if gradients is None:
                raise ValueError(f"batch {count} has a gradient that is not finite: is there NaN in its images?")
            count += 1
            for total, gradient in zip(squares, gradients, strict=True):
                if gradient is not None:
                    total += gradient.square()
        if not count:
            raise ValueError("there is no batch to measure the importance of the parameters on")
        self.importance = [total / count for total in squares]

    def _learn(self, x: Tensor, logits: Tensor) -> None:
        entropy, p = entropies(logits), logits.detach().softmax(1)
        margin = self._margin(logits)
        chosen = entropy.detach() < margin
        if self.mean_prediction is not None:
            chosen &= F.cosine_similarity(self.mean_prediction[None], p).abs() < self.similarity
        if not chosen.any():
            return
        mean, old = p[chosen].mean(0), self.mean_prediction
        self.mean_prediction = mean if old is None else 0.9 * old + 0.1 * mean
        entropy = entropy[chosen]
        loss = ((margin - entropy.detach()).exp() * entropy).mean()
        for importance, parameter, start in zip(self.importance, self.adapted, self._start, strict=False):
            loss = loss + self.weight * (importance * (parameter - start).square()).sum()
        self._step(self._gradients(loss))


class SAR(_Selective):
    r"""Tent on reliable rows, towards flat minima, with a return to the start when predictions collapse.

    .. math:: \theta' = \theta + \rho\,\frac{g}{\lVert g\rVert}, \quad
              g = \nabla_\theta \frac{1}{|S|}\sum_{i \in S} H_i(\theta)

              \theta \leftarrow \theta - \eta\,\nabla \frac{1}{|S'|} \sum_{i \in S'} H_i(\theta')

    :math:`S = \{i : H_i(\theta) < E_0\}` are the reliable rows, :math:`S' \subseteq S` those that are so at
    :math:`\theta'`, too. The second pass sees the whole batch. The mean over :math:`S'` enters an average, 0.9 to 0.1;
    when that falls below ``floor``, the predictions have become certain of everything: parameters, optimiser and
    average return to the start. A batch without reliable rows takes no step.

    Parameters
    ----------
    model
        As :class:`EATA`'s. The method is meant for GroupNorm or LayerNorm, which need no batch.
    lr, momentum
        Of SGD.
    threshold
        :math:`E_0 / \ln C`, with C classes.
    radius
        ρ.
    floor
        Of the averaged entropy, in nats; 0 never returns.

    Shape
    -----
    What the model takes → logits ``(n, C)``, those before the step.

    Notes
    -----
    The released code restores the old average after a return, so that it returns again on the following batches; here
    the average starts anew. It also leaves out the last blocks of two networks, which it knows by name.

    References
    ----------
    S. Niu, J. Wu, Y. Zhang, Z. Wen, Y. Chen, P. Zhao, M. Tan. Towards Stable Test-Time Adaptation in Dynamic Wild
    World. ICLR 2023.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 2.5e-4,
        threshold: float = 0.4,
        radius: float = 0.05,
        floor: float = 0.2,
        momentum: float = 0.9,
    ) -> None:
        if not radius >= 0:
            raise ValueError(f"radius must be at least 0, got {radius}")
        self.radius, self.floor = radius, floor
        super().__init__(model, lr, threshold, momentum)

    def reset(self) -> None:
        """Return to the start, and forget the optimiser's state and the average of the entropy."""
        super().reset()
        self.average: float | None = None

    def _learn(self, x: Tensor, logits: Tensor) -> None:
        entropy, margin = entropies(logits), self._margin(logits)
        reliable = entropy.detach() < margin
        ascent = self._gradients(entropy[reliable].mean())  # of no row it is NaN, and there are no gradients
        if ascent is None:
            return
        here = [parameter.detach().clone() for parameter in self.adapted]
        length = sum((g.square().sum() for g in ascent if g is not None), torch.zeros(())).sqrt()
        with torch.no_grad():
            for parameter, gradient in zip(self.adapted, ascent, strict=True):
                if gradient is not None:
                    parameter.add_(gradient * (self.radius / (length + 1e-12)))
        try:
            entropy = entropies(logits_of(self.model, x))
            loss = entropy[reliable & (entropy.detach() < margin)].mean()
            descent = self._gradients(loss)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.adapted, here, strict=True):
                    parameter.copy_(value)
        if descent is None:
            return
        self.average = loss.item() if self.average is None else 0.9 * self.average + 0.1 * loss.item()
        self._step(descent)
        if self.average < self.floor:
            self.reset()
