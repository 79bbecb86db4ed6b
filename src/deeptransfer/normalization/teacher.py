"""CoTTA: all parameters follow a slow teacher, and some go back to where they began."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adabn import evaluation_mode
from .passes import wide
from .test_time import Tent, logits_of, prediction_time


class CoTTA(Tent):
    r"""Continual test-time adaptation: learn from a teacher that sees augmented copies, forget a little at random.

    .. math:: L(\theta) = -\frac1n \sum_i \sum_c q_{ic} \log p_{ic}(\theta), \qquad
              \bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta, \qquad
              \theta_j \leftarrow \theta_{j0} \text{ with probability } r

    :math:`p_i` are the predictions of the student :math:`\theta`, :math:`q_i` those of the teacher
    :math:`\bar\theta`. If the anchor :math:`\theta_0`, the network as it came, is unsure of the batch, :math:`q` is of
    the mean of the teacher's logits over K augmented copies of the batch, else of the batch as it is. Unsure means that
    the mean over the batch of the anchor's largest probability is below ``threshold``: one switch for all rows. A call
    takes one step of Adam on *all* parameters of the student, then moves the teacher, then restores, and returns the
    teacher's logits from before the step. All three networks normalise by the batch
    (:func:`~deeptransfer.normalization.prediction_time`).

    Parameters
    ----------
    model
        The student, adapted in place. Returns logits ``(n, C)``, or an object with ``.logits``. A network without
        BatchNorm is not normalised by its batch.
    augment
        Makes an augmented copy of a batch; called K times. Its draws are its own affair: transforms of torchvision take
        them from the global generator, as the restored entries are.
    lr
        Learning rate of Adam.
    momentum
        m, in [0, 1].
    restore
        r, in [0, 1].
    threshold
        Of the anchor's confidence: 0 never averages, more than 1 always does.
    views
        K ≥ 1.

    Shape
    -----
    What the model takes → logits ``(n, C)``.

    Raises
    ------
    ValueError
        If a number is out of its range, or the model has no parameter.

    Notes
    -----
    The defaults are those of the released code for CIFAR-10-C, whose copies are jittered in colour, turned and shifted,
    blurred, and mirrored. Where that code restores only what is called "weight" or "bias", all parameters are restored
    here; and its networks are in training mode, dropout included, where these evaluate.

    Without a step, for a batch without rows or with a loss or gradient that is not finite, teacher and student stay.

    References
    ----------
    Q. Wang, O. Fink, L. Van Gool, D. Dai. Continual Test-Time Domain Adaptation. CVPR 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        augment: Callable[[Tensor], Tensor],
        lr: float = 1e-3,
        momentum: float = 0.999,
        restore: float = 0.01,
        threshold: float = 0.92,
        views: int = 32,
    ) -> None:
        for name, share in (("momentum", momentum), ("restore", restore)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share, in [0, 1]; got {share}")
        if views < 1:
            raise ValueError(f"views counts augmented copies, so it must be 1 or more; got {views}")
        self.momentum, self.restore, self.threshold, self.views = momentum, restore, threshold, views
        super().__init__(model, lr)
        self.augment = augment

    def _chosen(self) -> list[nn.Parameter]:
        parameters = list(self.model.parameters())
        if not parameters:
            raise ValueError(f"{type(self.model).__name__} has no parameter to adapt")
        return parameters

    def reset(self) -> None:
        """Return student and teacher to where they began, and forget the optimiser's state."""
        super().reset()
        self.teacher, self.anchor = (copy.deepcopy(self.model).requires_grad_(False) for _ in range(2))
        # In half precision the teacher's small moves would be rounded away.
        self._slow = [wide(p.detach().clone()) for p in self.teacher.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """Predict the batch by the teacher, then learn from it; also where the caller has switched gradients off."""
        with self._statistics(), torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x
            with torch.no_grad():
                taught = self._taught(x)
            log_p = F.log_softmax(wide(logits_of(self.model, x)), dim=1)
            gradients = self._gradients(-(wide(taught).softmax(1) * log_p).sum(1).mean())
            if gradients is not None:
                self._step(gradients)
                self._follow()
        return taught

    @contextmanager
    def _statistics(self) -> Iterator[None]:
        way = prediction_time if self._by_batch else evaluation_mode
        with way(self.model), way(self.teacher), way(self.anchor):
            yield

    def _taught(self, x: Tensor) -> Tensor:
        sure = logits_of(self.anchor, x).softmax(1).amax(1).mean() >= self.threshold
        if sure or not len(x):
            return logits_of(self.teacher, x)
        return torch.stack([logits_of(self.teacher, self.augment(x)) for _ in range(self.views)]).mean(0)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the teacher towards the student, then put some of the student's entries back."""
        for taught, slow, moved in zip(self.teacher.parameters(), self._slow, self._moved, strict=True):
            taught.copy_(slow.lerp_(moved, 1 - self.momentum))
        for parameter, moved, start in zip(self.adapted, self._moved, self._start, strict=True):
            back = torch.rand(start.shape, device=start.device) < self.restore
            moved.copy_(torch.where(back, start.to(moved.dtype), moved))
            parameter.copy_(moved)
