r"""Each method as an objective: what is minimised, as named losses of one batch.

All share one signature, ``objective(network, batch, progress) -> dict of losses``, and one pass through the network:
source and target rows together, so that the normalisation layers of the network, whatever they are, know both domains.
An objective and a normalisation can therefore be combined freely. The losses come weighted: their sum is minimised.

A method is its :meth:`Objective.terms`; ``progress`` in [0, 1] is the only clock. Losses are float32 or better, also of
a network in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeptransfer.adversarial import (
    AdversarialDiscriminativeLoss,
    ConditionalDomainAdversarialLoss,
    DomainAdversarialLoss,
    DomainConfusionLoss,
    DomainDiscriminator,
    MultilinearMap,
    SoftLabelLoss,
    dann_lambda,
    full_precision,
    gradient_reversal,
    negative_entropy,
)
from deeptransfer.discrepancy import JointMMD, MultiKernelMMD, linear_mmd2, mmd2
from deeptransfer.domains import Batch
from deeptransfer.networks import Network, Output, initialize
from deeptransfer.normalization import (
    forward_domains,
    gate_parameters,
    min_entropy_consensus,
    mixes_domains,
    use_domain,
)

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """The schedule that is always 1."""
    return 1.0


@dataclass(frozen=True)
class Passed:
    """Outputs of one joint pass, by the role of the rows.

    Attributes
    ----------
    source, target : Output
        Of ``batch.xs`` and ``batch.xt``.
    second_view : Output or None
        Of ``batch.xt2``, the same target images augmented anew.
    labelled : Output or None
        Of ``batch.xl``, the labelled target images.
    """

    source: Output
    target: Output
    second_view: Output | None = None
    labelled: Output | None = None


def _split(output: Output, sizes: Sequence[int]) -> list[Output]:
    """Cut the rows of an output into parts of the given sizes."""
    features, logits = output.features.split(list(sizes)), output.logits.split(list(sizes))
    hidden = {name: value.split(list(sizes)) for name, value in output.hidden.items()}
    return [
        Output(features[i], logits[i], {name: parts[i] for name, parts in hidden.items()}) for i in range(len(sizes))
    ]


class Objective(nn.Module):
    r"""Cross-entropy of all labelled rows, plus the terms of a method.

    .. math:: L = \frac1n \sum_i -\log p_{y_i}(x_i) + \text{terms}

    On its own it is the baseline that sees the target images in its normalisation layers and nowhere else.

    Parameters
    ----------
    weight : float
        λ, the weight of the method's terms.
    schedule : callable
        ``schedule(progress)`` multiplies ``weight``.

    Attributes
    ----------
    layers : tuple of str
        Hidden layers that ``terms`` reads from ``Output.hidden``.
    """

    layers: tuple[str, ...] = ()

    def __init__(self, weight: float = 1.0, schedule: Schedule = constant) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be 0 or more, not {weight}")
        self.weight, self.schedule = weight, schedule

    def forward(self, network: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted losses by name.

        Parameters
        ----------
        network : Module
            Returns an :class:`~deeptransfer.networks.Output`; in training mode.
        batch : Batch
            Source images and labels, target images; see :class:`~deeptransfer.domains.Batch`.
        progress : float
            Part of the training that is done, in [0, 1].
        """
        parts = {"target": batch.xt, "second_view": batch.xt2, "labelled": batch.xl}
        present = {role: images for role, images in parts.items() if images is not None}
        source, rows = forward_domains(network, batch.xs, torch.cat(list(present.values())), layers=self.layers)
        outputs = _split(rows, [len(images) for images in present.values()])
        passed = Passed(source, **dict(zip(present, outputs, strict=True)))
        logits, labels = full_precision(source.logits), batch.ys
        if passed.labelled is not None and batch.yl is not None:
            logits, labels = torch.cat([logits, passed.labelled.logits]), torch.cat([labels, batch.yl])
        losses = {"classification": F.cross_entropy(logits, labels)}
        return losses | self.terms(passed, batch, progress)

    def strength(self, progress: float) -> float:
        """λ at this moment: ``weight`` times ``schedule(progress)``."""
        return self.weight * self.schedule(progress)

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        """What the method adds to the classification loss, weighted."""
        return {}

    def parameter_groups(self, network: nn.Module) -> list[dict]:
        """Groups for an optimiser: the network, its normalisation gates (no weight decay), the method's own modules."""
        gates = {id(p) for p in gate_parameters(network)}
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in gates]},
            {"params": [p for p in trained if id(p) in gates], "weight_decay": 0.0},
            {"params": [p for p in self.parameters() if p.requires_grad]},
        ]
        return [group for group in groups if group["params"]]  # type: ignore[misc,index]


class SourceOnly(Objective):
    """The network trained on the source alone; target images, labelled ones too, are never looked at."""

    def forward(self, network: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        with use_domain(network, "source"):
            return {"classification": F.cross_entropy(full_precision(network(batch.xs).logits), batch.ys)}


# -------------------------------------------------------------------------------------------- matching distributions


class DaNN(Objective):
    r"""Domain adaptive neural network: MMD² on the pre-activation q of one hidden layer.

    .. math:: J = J_{NN} + \gamma\,\mathrm{MMD}^2(q_s, q_t)

    Parameters
    ----------
    weight : float
        γ.
    layer : str
        The layer whose output is q.
    sigma2 : float or sequence, optional
        Bandwidth of the Gaussian kernel; half the mean squared distance of the batch by default.

    References
    ----------
    Ghifary, Kleijn, Zhang, *Domain Adaptive Neural Networks for Object Recognition*, PRICAI 2014.
    """

    def __init__(
        self,
        weight: float = 1.0,
        layer: str = "fc1",
        sigma2: float | Sequence[float] | None = None,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        self.layers, self.sigma2 = (layer,), sigma2

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        (layer,) = self.layers
        return {
            "mmd": self.strength(progress) * mmd2(passed.source.hidden[layer], passed.target.hidden[layer], self.sigma2)
        }


class DDC(Objective):
    r"""Deep domain confusion: squared distance of the means of an adaptation layer.

    .. math:: L = L_C + \lambda\,\lVert \bar f_s - \bar f_t \rVert^2 / D

    The paper's MMD is this linear-kernel one, which grows with the width D of the layer: here it is divided by it.

    Parameters
    ----------
    weight : float
        λ.
    layer : str
        The adaptation layer.

    References
    ----------
    Tzeng, Hoffman, Zhang, Saenko, Darrell, *Deep Domain Confusion: Maximizing for Domain Invariance*, 2014.
    """

    def __init__(self, weight: float = 1.0, layer: str = "features", schedule: Schedule = constant) -> None:
        super().__init__(weight, schedule)
        self.layers = (layer,)

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        (layer,) = self.layers
        distance = linear_mmd2(passed.source.hidden[layer], passed.target.hidden[layer], normalization="width")
        return {"mmd": self.strength(progress) * distance}


class DAN(Objective):
    r"""Deep adaptation network: multi-kernel MMD² summed over several layers.

    .. math:: L = L_C + \lambda \sum_\ell \mathrm{MMD}^2_k(D_s^\ell, D_t^\ell), \qquad k = \sum_u \beta_u k_u

    Parameters
    ----------
    weight : float
        λ; with Σβ = 1 (released code sums five kernels: its λ is ours / 5).
    layers : sequence of str
        The adapted layers.
    weights : sequence of float, optional
        β of the five kernels; uniform by default.

    References
    ----------
    Long, Cao, Wang, Jordan, *Learning Transferable Features with Deep Adaptation Networks*, ICML 2015.
    """

    def __init__(
        self,
        weight: float = 1.0,
        layers: Sequence[str] = ("features", "logits"),
        weights: Sequence[float] | None = None,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        if not layers:
            raise ValueError("layers is empty: DAN adapts at least one layer, such as ('features',)")
        self.layers = tuple(layers)
        self.distance = MultiKernelMMD(weights=weights)

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        s, t = passed.source.hidden, passed.target.hidden
        return {
            "mmd": self.strength(progress)
            * torch.stack([self.distance(s[name], t[name]) for name in self.layers]).sum()
        }


class JAN(Objective):
    r"""Joint adaptation network: JMMD of features and predictions together.

    .. math:: L = L_C + \lambda\,\hat D\big((f_s, g_s), (f_t, g_t)\big), \qquad g = \mathrm{softmax}(\text{logits})

    Parameters
    ----------
    weight : float
        λ.
    adversarial : bool
        JAN-A: each layer first goes through a linear map θ, started at the identity, which *maximises* the
        discrepancy, min over f and max over θ.
    dims : sequence of int
        Widths of features and predictions, needed by the maps of JAN-A.

    References
    ----------
    Long, Zhu, Wang, Jordan, *Deep Transfer Learning with Joint Adaptation Networks*, ICML 2017.
    """

    def __init__(
        self,
        weight: float = 1.0,
        adversarial: bool = False,
        dims: Sequence[int] | None = None,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        self.distance = JointMMD()
        self.maps = nn.ModuleList()
        if adversarial:
            if dims is None or len(dims) != 2:
                raise ValueError(f"JAN-A needs dims=(width of the features, number of classes), not {dims}")
            for dim in dims:
                theta = nn.Linear(dim, dim, bias=False)
                nn.init.eye_(theta.weight)
                self.maps.append(theta)

    def _view(self, output: Output) -> list[Tensor]:
        layers = [output.features, output.logits.softmax(1)]
        if not self.maps:
            return layers
        # Reversed before and behind: the features still minimise, θ in between maximises.
        return [gradient_reversal(m(gradient_reversal(z, 1.0)), 1.0) for m, z in zip(self.maps, layers, strict=True)]

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"jmmd": self.strength(progress) * self.distance(self._view(passed.source), self._view(passed.target))}


# ------------------------------------------------------------------------------------------------------ adversaries


def _discriminator(in_features: int, hidden: int, seed: int) -> DomainDiscriminator:
    """A discriminator whose weights are drawn on the CPU."""
    discriminator = DomainDiscriminator(in_features, hidden)
    initialize(discriminator, torch.Generator().manual_seed(seed))
    return discriminator


class DomainConfusion(Objective):
    r"""Domain confusion of Tzeng et al. 2015: the discriminator learns, the features confuse it, in alternation.

    .. math:: L = L_C + L_D(\bar f; \theta_D) + \lambda L_{conf}(f; \bar\theta_D)

    A bar marks what is held fixed. Soft labels are a term of their own:
    ``Combined(DomainConfusion(…), SoftLabels(…))``.

    Parameters
    ----------
    in_features : int
        Width of the features.
    weight : float
        λ.
    hidden : int
        Width of the discriminator.
    seed : int
        Of its initial weights.

    References
    ----------
    Tzeng, Hoffman, Darrell, Saenko, *Simultaneous Deep Transfer Across Domains and Tasks*, ICCV 2015.
    """

    def __init__(
        self,
        in_features: int,
        weight: float = 1.0,
        hidden: int = 128,
        seed: int = 0,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        self.loss = DomainConfusionLoss(_discriminator(in_features, hidden, seed))

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        losses = self.loss(passed.source.features, passed.target.features)
        return {"discriminator": losses["discriminator"], "confusion": self.strength(progress) * losses["confusion"]}


class SoftLabels(Objective):
    r"""Soft labels of Tzeng et al. 2015 for the few labelled target images.

    .. math:: L = L_C + \nu L_{soft}

    Parameters
    ----------
    loss : SoftLabelLoss
        Filled with the source's softened predictions (``loss.update``).
    weight : float
        ν.

    References
    ----------
    Tzeng, Hoffman, Darrell, Saenko, *Simultaneous Deep Transfer Across Domains and Tasks*, ICCV 2015.
    """

    def __init__(self, loss: SoftLabelLoss, weight: float = 0.1, schedule: Schedule = constant) -> None:
        super().__init__(weight, schedule)
        self.loss = loss

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        if passed.labelled is None or batch.yl is None:
            raise ValueError("soft labels need labelled target images: give DomainPair a labelled_target")
        return {"soft_labels": self.strength(progress) * self.loss(passed.labelled.logits, batch.yl)}


class DANN(Objective):
    r"""Domain-adversarial network: a reversed gradient lets the features maximise what the discriminator minimises.

    .. math:: \min_{\theta_D} L_D(f; \theta_D), \qquad \min_f\; L_C - \lambda_p L_D

    Parameters
    ----------
    in_features : int
        Width of the features.
    weight : float
        Multiplies λ_p; the discriminator's own learning is not scaled.
    hidden : int
        Width of the discriminator.
    seed : int
        Of its initial weights.
    schedule : callable
        λ_p; :func:`~deeptransfer.adversarial.dann_lambda` by default.

    References
    ----------
    Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016.
    """

    def __init__(
        self,
        in_features: int,
        weight: float = 1.0,
        hidden: int = 128,
        seed: int = 0,
        schedule: Schedule = dann_lambda,
    ) -> None:
        super().__init__(weight, schedule)
        self.loss = DomainAdversarialLoss(_discriminator(in_features, hidden, seed))

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"adversarial": self.loss(passed.source.features, passed.target.features, self.strength(progress))}


class CDAN(Objective):
    r"""Conditional domain-adversarial network: the discriminator sees features ⊗ predictions; CDAN+E by ``weighting``.

    Parameters
    ----------
    in_features, num_classes : int
        Widths of features and predictions.
    weight : float
        Multiplies λ_p.
    weighting : {"per-domain", "joint", "max"} or None
        Entropy weights of CDAN+E, by the way they are normalised; None is CDAN.
    hidden : int
        Width of the discriminator.
    seed : int
        Of its initial weights and of the random map, where the product is too wide for the exact one.
    schedule : callable
        λ_p.

    References
    ----------
    Long, Cao, Wang, Jordan, *Conditional Adversarial Domain Adaptation*, NeurIPS 2018.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        weight: float = 1.0,
        weighting: str | None = None,
        hidden: int = 128,
        seed: int = 0,
        schedule: Schedule = dann_lambda,
    ) -> None:
        super().__init__(weight, schedule)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone: fork_rng restores no other here
            mapping = MultilinearMap(in_features, num_classes)
        discriminator = _discriminator(mapping.out_features, hidden, seed)
        self.loss = ConditionalDomainAdversarialLoss(discriminator, mapping, weighting)  # type: ignore[arg-type]

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        s, t = passed.source, passed.target
        return {"adversarial": self.loss(s.features, t.features, s.logits, t.logits, self.strength(progress))}


class ADDA(Objective):
    r"""Adversarial discriminative domain adaptation: a target encoder learns to be taken for the source's.

    The network to train starts as a source-trained one; a frozen copy of it encodes the source. Its classifier is not
    trained, and there is no classification loss.

    Parameters
    ----------
    source_network : Network
        Trained on the source; copied, the copy is frozen in eval mode.
    in_features : int
        Width of the features.
    weight : float
        Of the encoder's loss.
    hidden : int
        Width of the discriminator.
    seed : int
        Of its initial weights.

    References
    ----------
    Tzeng, Hoffman, Saenko, Darrell, *Adversarial Discriminative Domain Adaptation*, CVPR 2017.
    """

    def __init__(
        self,
        source_network: Network,
        in_features: int,
        weight: float = 1.0,
        hidden: int = 128,
        seed: int = 0,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        # In a list: the frozen source encoder is no part of what is trained, moved to a mode or saved with the method.
        self._source = [copy.deepcopy(source_network).eval().requires_grad_(False)]
        self.loss = AdversarialDiscriminativeLoss(_discriminator(in_features, hidden, seed))

    def forward(self, network: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        if mixes_domains(network):
            raise ValueError(
                "ADDA never passes source and target together, so a normalisation that mixes their statistics "
                "(TransNorm, AutoDIAL, Reciprocal Normalization) has nothing to mix: use BatchNorm or DomainBatchNorm"
            )
        source = self._source[0].to(batch.xs)  # device and dtype
        with torch.no_grad(), use_domain(source, "source"):
            fs = source(batch.xs).features
        with use_domain(network, "target"):
            ft = network(batch.xt).features
        losses = self.loss(fs, ft)
        return {
            "discriminator": losses["discriminator"],
            "encoder": self.strength(progress) * losses["encoder"],
        }

    def parameter_groups(self, network: nn.Module) -> list[dict]:
        """The target encoder and the discriminator: the classifier stays as the source left it."""
        encoder = [p for p in network.get_submodule("features").parameters() if p.requires_grad]
        return [{"params": encoder}, {"params": list(self.loss.parameters())}]


# ------------------------------------------------------------------------------------ baselines on target predictions


class EntropyMinimization(Objective):
    r"""Mean entropy of the target's predictions.

    .. math:: L = L_C + \lambda \frac1{n_t} \sum_i H\big(g(x_i)\big)

    References
    ----------
    Grandvalet, Bengio, *Semi-supervised Learning by Entropy Minimization*, NeurIPS 2004.
    """

    def __init__(self, weight: float = 0.1, schedule: Schedule = constant) -> None:
        super().__init__(weight, schedule)

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        log_g = full_precision(passed.target.logits).log_softmax(1)
        return {"entropy": self.strength(progress) * -negative_entropy(log_g).mean()}


class PseudoLabels(Objective):
    r"""Cross-entropy of target predictions to their own argmax, where that is confident.

    .. math:: L = L_C + \lambda \frac1{n_t} \sum_{i:\, \max_k g_k(x_i) \ge \tau} -\log g_{\hat y_i}(x_i)

    Parameters
    ----------
    weight : float
        λ.
    threshold : float
        τ in [0, 1].

    References
    ----------
    Lee, *Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method*, 2013.
    """

    def __init__(self, weight: float = 1.0, threshold: float = 0.9, schedule: Schedule = constant) -> None:
        super().__init__(weight, schedule)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a probability in [0, 1], not {threshold}")
        self.threshold = threshold

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        logits = full_precision(passed.target.logits)
        confidence, labels = logits.detach().softmax(1).max(1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return {"pseudo_labels": self.strength(progress) * (losses * (confidence >= self.threshold)).mean()}


class MEC(Objective):
    r"""Min-entropy consensus: two views of a target image must agree on a confident class.

    .. math:: L = L_C + \lambda \frac1{n_t} \sum_i \min_k \tfrac12 \big(-\log g_k(x_i) - \log g_k(x'_i)\big)

    Needs ``DomainPair(…, views=2)``; made for :class:`~deeptransfer.normalization.DomainWhitening2d`.

    References
    ----------
    Roy et al., *Unsupervised Domain Adaptation using Feature-Whitening and Consensus Loss*, CVPR 2019.
    """

    def __init__(self, weight: float = 0.1, schedule: Schedule = constant) -> None:
        super().__init__(weight, schedule)

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        if passed.second_view is None:
            raise ValueError("MEC compares two views of each target image: give DomainPair views=2")
        first, second = (full_precision(output.logits) for output in (passed.target, passed.second_view))
        return {"consensus": self.strength(progress) * min_entropy_consensus(first, second)}


class LossModule(nn.Module):
    """Network and objective as one module, whose forward returns the losses: what to wrap for several processes.

    Under ``DistributedDataParallel`` only what is inside the wrapped module is kept alike on all ranks. A discriminator
    left outside would see its own rank's rows alone, and the ranks' discriminators would drift apart. Normalisation
    layers join the rows of all ranks when they are made with ``sync=True``; discrepancies and entropy weights are those
    of each rank's rows.

    Parameters
    ----------
    network : Module
        Returns an :class:`~deeptransfer.networks.Output`.
    objective : Objective
        What is minimised.
    """

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted losses by name."""
        return self.objective(self.network, batch, progress)


class Combined(Objective):
    """Several methods at once, in one pass: classification once, the terms of all.

    Parameters
    ----------
    *objectives : Objective
        Those that add terms to the joint pass: not SourceOnly and ADDA, which pass the domains apart.

    Raises
    ------
    ValueError
        If none is given, one passes the domains apart, or two name a term alike.
    """

    def __init__(self, *objectives: Objective) -> None:
        super().__init__()
        if not objectives:
            raise ValueError("Combined needs at least one objective")
        for objective in objectives:
            if type(objective).forward is not Objective.forward:
                raise ValueError(f"{type(objective).__name__} passes the domains apart and can't share a joint pass")
        self.objectives = nn.ModuleList(objectives)
        self.layers = tuple(dict.fromkeys(layer for objective in objectives for layer in objective.layers))

    def terms(self, passed: Passed, batch: Batch, progress: float) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for objective in self.objectives:
            new = objective.terms(passed, batch, progress)  # type: ignore[operator]
            if repeated := set(new) & set(losses):
                raise ValueError(f"two of the combined objectives have a term {sorted(repeated)[0]!r}")
            losses |= new
        return losses
