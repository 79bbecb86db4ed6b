"""One record per method: what it is called, where it comes from, what it assumes, needs and costs.

The map of methods, the command line and the API page are written from these records, so that no fact stands twice.
Code is named, and imported when it is used: the book is built from the records where PyTorch is not installed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from deeptransfer.objectives import Objective

Kind = Literal[
    "baseline",
    "discrepancy",
    "adversarial",
    "prediction",
    "normalization",
    "test-time",
    "generalization",
    "multi-domain",
    "efficiency",
    "style",
    "weights",
]
OBJECTIVES = ("baseline", "discrepancy", "adversarial", "prediction")

UNLABELLED = "unlabelled target images"
LABELLED = "a few labelled target images"
START = "a source-trained start"
VIEWS = "two views of each target image"
BATCHES = "target images in batches"
SEVERAL = "labelled images of several domains"
ONE_IMAGE = "one image of the style"
STYLES = "images of each style"

COVARIATE = "p(x) differs, p(y|x) is shared"
MARGINAL = "p(x) differs; features exist in which the domains agree and p(y|f) is shared"
JOINT = "p(x, y) differs; features exist in which the domains agree together with their classes"
CLUSTERS = "p(x) differs; class borders run where target images are rare"
STATISTICS = "per-channel means and variances differ, what a channel stands for is shared"
STYLE = "domains differ in the statistics of a single image, and these say nothing about its class"
CHANGED = "the network changes, and with it the means and variances that its layers receive"
RELATED = "domains differ, most of what a network computes is shared"
NO_SHIFT = "none: only what a layer amplifies is bounded"
APPEARANCE = "style is in the statistics of an image's features, content in where they are"

# Where each chapter lies, below book/.
CHAPTERS: dict[int, str] = {
    1: "part1/transferability",
    2: "part1/shift",
    3: "part2/mmd",
    4: "part2/dan",
    5: "part2/jan",
    6: "part3/confusion",
    7: "part3/dann",
    8: "part3/cdan",
    9: "part4/adabn",
    10: "part4/autodial",
    11: "part4/transnorm",
    12: "part4/reciprocal",
    13: "part4/everything",
    14: "part5/test-time",
    15: "part5/unseen",
    16: "part5/many-domains",
    17: "part5/style",
    18: "part5/weights",
    19: "part5/cheaper",
    20: "part5/open",
}


@dataclass(frozen=True)
class Method:
    """What the book knows about a method.

    Attributes
    ----------
    name, title : str
        As the command line and a page call it.
    paper : str
        Authors, venue, year.
    chapter : int or None
        Where it is taught; None while no chapter teaches it.
    kind : str
        ``"baseline"``, ``"discrepancy"``, ``"adversarial"`` and ``"prediction"`` are objectives. Of the others,
        ``"normalization"`` is what :meth:`convert` gives a network for one source and one target; ``"test-time"``
        adapts to what arrives, ``"generalization"`` prepares for domains never seen, ``"multi-domain"`` lets several
        domains share a network, ``"efficiency"`` makes a network cheaper, ``"style"`` moves or matches the statistics
        of single images, ``"weights"`` normalises weights and reads no image.
    shift : str
        The difference between the domains that it assumes.
    needs : tuple of str
        Beyond source images and their labels.
    cost : str
        In words, beyond training on the source.
    symbol : str
        Dotted path of what implements it.
    options : mapping
        Arguments that make this method of the symbol.
    builder : callable, optional
        ``builder(network, num_classes, seed, **settings)``, where the symbol's own signature does not say it all.
    prepares : bool
        Whether the symbol is a function of a network and target images, and changes the network before it is scored.
    section : str, optional
        The page below the chapter's on which it is taught, if it has one.
    statistics : tuple of str
        Whose statistics it reads: of a ``"set"`` of images, a domain, or of one ``"image"``, its style; none if empty.
    edits : bool
        Whether it puts other statistics in their place, where most methods remove the difference.
    """

    name: str
    title: str
    paper: str
    chapter: int | None
    kind: Kind
    shift: str
    needs: tuple[str, ...]
    cost: str
    symbol: str
    options: Mapping[str, Any] = field(default_factory=dict)
    builder: Callable[..., Objective] | None = None
    prepares: bool = False
    section: str | None = None
    statistics: tuple[Literal["set", "image"], ...] = ("set",)
    edits: bool = False

    @property
    def page(self) -> str | None:
        """Path below ``book/``, without suffix, of its section or else of the chapter."""
        return self.section or (None if self.chapter is None else CHAPTERS[self.chapter])

    @property
    def is_objective(self) -> bool:
        """Whether :meth:`factory` builds something to train with."""
        return self.kind in OBJECTIVES

    def resolve(self) -> Any:
        """The class or function that ``symbol`` names."""
        module, _, name = self.symbol.rpartition(".")
        return getattr(import_module(module), name)

    @property
    def before_evaluation(self) -> Callable[..., Any] | None:
        """``before_evaluation(network, target_images)`` changes a network in place before it is scored."""
        return self.resolve() if self.prepares else None

    def factory(self, network: nn.Module, num_classes: int, seed: int, **settings: Any) -> Objective:
        """Build the objective for a network.

        Parameters
        ----------
        network : Module
            Its ``classifier`` is linear: that tells the width of the features.
        num_classes, seed : int
            Number of classes; seed of the weights that the method brings.
        **settings
            Arguments of the objective, ``weight=0.5`` say.

        Raises
        ------
        ValueError
            If this is no objective, or a setting is unknown; the message lists the known ones.
        """
        if not self.is_objective:
            raise ValueError(f"{self.name!r} is a {self.kind} method, no objective: use it as a normalisation")
        build = self.builder or self.resolve()
        parameters = inspect.signature(build).parameters
        width = network.get_submodule("classifier").in_features
        facts = {
            "network": network,
            "source_network": network,
            "in_features": width,
            "num_classes": num_classes,
            "dims": (width, num_classes),
            "seed": seed,
        }
        known = [name for name in parameters if name not in facts and name not in self.options]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r} of {self.name!r}: known ones are {', '.join(known)}")
        return build(**{k: v for k, v in facts.items() if k in parameters}, **self.options, **settings)

    def convert(self, network: nn.Module, **settings: Any) -> nn.Module:
        """Give a network with plain BatchNorm this normalisation, in place; ``bn`` and ``adabn`` leave it as it is.

        Raises
        ------
        ValueError
            If this is no normalisation to train with.
        """
        if self.kind != "normalization":
            raise ValueError(
                f"{self.name!r} is no normalisation, it is of the kind {self.kind!r}: there is no layer to put into a "
                f"network; normalisations are {', '.join(record.name for record in methods('normalization'))}"
            )
        if not self.has_layer:
            if settings:
                raise ValueError(f"{self.name!r} has no settings, got {', '.join(settings)}")
            return network
        from deeptransfer.normalization import convert_norm

        return convert_norm(network, self.resolve(), **{**self.options, **settings})

    @property
    def has_layer(self) -> bool:
        """Whether it is a layer of its own in place of BatchNorm."""
        return self.kind == "normalization" and self.symbol.endswith("2d") and not self.symbol.startswith("torch.")


def confusion_with_soft_labels(
    in_features: int,
    num_classes: int,
    seed: int,
    weight: float = 1.0,
    hidden: int = 128,
    soft_weight: float = 0.1,
    temperature: float = 2.0,
) -> Objective:
    """Both halves of Tzeng et al. 2015; the soft labels are still to be filled from the source (``loss.update``)."""
    from deeptransfer.adversarial import SoftLabelLoss
    from deeptransfer.objectives import Combined, DomainConfusion, SoftLabels

    soft = SoftLabels(SoftLabelLoss(num_classes, temperature), soft_weight)
    return Combined(DomainConfusion(in_features, weight, hidden, seed), soft)


_TZENG_2015 = "Tzeng, Hoffman, Darrell, Saenko, ICCV 2015"
_CDAN = "Long, Cao, Wang, Jordan, NeurIPS 2018"
_CHANG = "Chang, You, Seo, Kwak, Han, CVPR 2019"
_WANG = "Wang, Jin, Long, Wang, Jordan, NeurIPS 2019"
_O = "deeptransfer.objectives."
_N = "deeptransfer.normalization."
_S = "deeptransfer.style."
_W = "deeptransfer.weights."
_WHITENING = "part4/whitening"
_IMAGE: tuple[Literal["image"]] = ("image",)
_BOTH: tuple[Literal["set"], Literal["image"]] = ("set", "image")
_DISCRIMINATOR = "a discriminator of the features, trained along"

_RECORDS = (
    # name, title, paper, chapter, kind, shift, needs, cost, symbol
    Method("source-only", "Source only", "the baseline that sees no target image", 2, "baseline",
           "none: the domains are alike", (), "none", _O + "SourceOnly", statistics=()),
    Method("joint", "Joint statistics", "the baseline that sees the target in its normalisation only", 3, "baseline",
           STATISTICS, (UNLABELLED,), "target images in the forward pass", _O + "Objective"),
    Method("da-nn", "Domain adaptive neural network (DaNN)", "Ghifary, Kleijn, Zhang, PRICAI 2014", 3, "discrepancy",
           MARGINAL, (UNLABELLED,), "one matrix of distances per batch, O(n²)", _O + "DaNN"),
    Method("ddc", "Deep domain confusion (DDC)", "Tzeng, Hoffman, Zhang, Saenko, Darrell, 2014", 3, "discrepancy",
           MARGINAL, (UNLABELLED,), "two means per batch, O(n)", _O + "DDC"),
    Method("dan", "Deep adaptation network (DAN)", "Long, Cao, Wang, Jordan, ICML 2015", 4, "discrepancy",
           MARGINAL, (UNLABELLED,), "one matrix of distances per layer, five kernels on it, O(n²)", _O + "DAN"),
    Method("jan", "Joint adaptation network (JAN)", "Long, Zhu, Wang, Jordan, ICML 2017", 5, "discrepancy",
           JOINT, (UNLABELLED,), "one matrix of distances per layer, O(n²)", _O + "JAN"),
    Method("jan-a", "Adversarial JAN (JAN-A)", "Long, Zhu, Wang, Jordan, ICML 2017", 5, "discrepancy",
           JOINT, (UNLABELLED,), "as JAN, and a square map per layer", _O + "JAN", {"adversarial": True}),
    Method("confusion", "Domain confusion", _TZENG_2015, 6, "adversarial",
           MARGINAL, (UNLABELLED,), _DISCRIMINATOR + ", applied twice", _O + "DomainConfusion"),
    Method("confusion+soft", "Domain confusion and soft labels", _TZENG_2015, 6, "adversarial",
           JOINT, (UNLABELLED, LABELLED, START), "as domain confusion, and the source's mean predictions once",
           _O + "SoftLabels", builder=confusion_with_soft_labels),
    Method("dann", "Domain-adversarial network (DANN)", "Ganin et al., JMLR 2016", 7, "adversarial",
           MARGINAL, (UNLABELLED,), _DISCRIMINATOR, _O + "DANN"),
    Method("adda", "Adversarial discriminative domain adaptation (ADDA)", "Tzeng, Hoffman, Saenko, Darrell, CVPR 2017",
           7, "adversarial", MARGINAL, (UNLABELLED, START), "a discriminator, a second encoder", _O + "ADDA"),
    Method("cdan", "Conditional domain-adversarial network (CDAN)", _CDAN, 8, "adversarial",
           JOINT, (UNLABELLED,), "a discriminator of features ⊗ predictions", _O + "CDAN"),
    Method("cdan+e", "CDAN with entropy weights (CDAN+E)", _CDAN, 8, "adversarial",
           JOINT, (UNLABELLED,), "as CDAN", _O + "CDAN", {"weighting": "per-domain"}),
    Method("entropy", "Entropy minimisation", "Grandvalet, Bengio, NeurIPS 2004", 10, "prediction",
           CLUSTERS, (UNLABELLED,), "none beyond the forward pass", _O + "EntropyMinimization", statistics=()),
    Method("pseudo-labels", "Pseudo-labels", "Lee, ICML workshop 2013", 13, "prediction",
           CLUSTERS, (UNLABELLED,), "none beyond the forward pass", _O + "PseudoLabels", statistics=()),
    Method("mec", "Min-entropy consensus (MEC)", "Roy et al., CVPR 2019", 10, "prediction",
           CLUSTERS, (UNLABELLED, VIEWS), "a second pass of the target images", _O + "MEC", section=_WHITENING,
           statistics=()),
    Method("bn", "Batch normalisation (BatchNorm)", "Ioffe, Szegedy, ICML 2015", 9, "normalization",
           "none: the pooled batch is one population", (), "none", "torch.nn.BatchNorm2d"),
    Method("adabn", "Adaptive batch normalisation (AdaBN)", "Li, Wang, Shi, Hou, Liu, Pattern Recognition 2018", 9,
           "normalization", STATISTICS, (UNLABELLED,), "one forward pass of the target per layer, no training",
           _N + "adapt_statistics", prepares=True),
    Method("dsbn", "Domain-specific statistics, one scale and shift (shared DSBN)", _CHANG, 10,
           "normalization", STATISTICS, (UNLABELLED,), "as BatchNorm", _N + "DomainBatchNorm2d"),
    Method("dsbn-unshared", "Domain-specific batch normalisation (DSBN)", _CHANG, 10,
           "normalization", STATISTICS, (UNLABELLED,), "as BatchNorm, and a second scale and shift",
           _N + "DomainBatchNorm2d", {"shared_affine": False}),
    Method("autodial", "Automatic domain alignment (AutoDIAL)", "Carlucci, Porzi, Caputo, Ricci, Rota Bulò, ICCV 2017",
           10, "normalization", STATISTICS, (UNLABELLED,), "as BatchNorm, and one gate a layer", _N + "AutoDIAL2d"),
    Method("transnorm", "Transferable normalisation (TransNorm)", _WANG, 11, "normalization",
           "statistics differ, in some channels more than in others", (UNLABELLED,), "as BatchNorm",
           _N + "TransNorm2d"),
    Method("transnorm-uniform", "TransNorm with α = 1", _WANG, 11, "normalization", STATISTICS, (UNLABELLED,),
           "as BatchNorm", _N + "TransNorm2d", {"probability": "uniform"}),
    Method("transnorm-halved", "TransNorm with ½(1 + α)", _WANG, 11, "normalization",
           "statistics differ, in some channels more than in others", (UNLABELLED,), "as BatchNorm",
           _N + "TransNorm2d", {"halved": True}),
    Method("rn", "Reciprocal normalisation (RN)", "Huang et al., 2021", 12, "normalization",
           "statistics differ, and a channel's counterpart may be another channel", (UNLABELLED,),
           "as BatchNorm, and four C × C attention matrices a layer", _N + "ReciprocalNorm2d"),
    Method("whitening", "Domain-specific whitening (DWT)", "Roy et al., CVPR 2019", 10, "normalization",
           "covariances of neighbouring channels differ, what a channel stands for is shared", (UNLABELLED,),
           "a Cholesky factor per group of channels", _N + "DomainWhitening2d", section=_WHITENING),
    Method("prediction-time", "Prediction-time batch normalisation",
           "Nado et al., 2020; Schneider et al., NeurIPS 2020", 14, "test-time", STATISTICS,
           (START, BATCHES), "none", _N + "prediction_time"),
    Method("tent", "Test-time entropy minimisation (Tent)", "Wang, Shelhamer, Liu, Olshausen, Darrell, ICLR 2021", 14,
           "test-time", STATISTICS, (START, BATCHES), "one backward pass per batch", _N + "Tent"),
    Method("eata", "Efficient anti-forgetting test-time adaptation (EATA)", "Niu et al., ICML 2022", 14, "test-time",
           STATISTICS, (START, BATCHES), "one backward pass per batch; the importance of parameters once", _N + "EATA"),
    Method("cotta", "Continual test-time adaptation (CoTTA)", "Wang, Fink, Van Gool, Dai, CVPR 2022", 14, "test-time",
           "a slow teacher that sees augmented copies is right more often", (START, BATCHES),
           "34 forward passes and one backward pass per batch", _N + "CoTTA", statistics=()),
    Method("sar", "Sharpness-aware and reliable entropy minimisation (SAR)", "Niu et al., ICLR 2023", 14, "test-time",
           STATISTICS, (START, BATCHES), "two forward and two backward passes per batch", _N + "SAR"),
    Method("note", "Instance-aware batch normalisation (NOTE)", "Gong et al., NeurIPS 2022", 14, "test-time",
           STATISTICS, ("training with the layer",), "moments of each image", _N + "InstanceAwareBatchNorm2d",
           statistics=_BOTH),
    Method("rotta", "Robust batch normalisation (RoTTA)", "Yuan, Xie, Li, CVPR 2023", 14, "test-time",
           STATISTICS, (START, BATCHES), "none", _N + "RobustBatchNorm2d"),
    Method("lame", "Laplacian adjusted maximum-likelihood estimation (LAME)",
           "Boudiaf, Mueller, Ben Ayed, Bertinetto, CVPR 2022", 14, "test-time",
           "neighbours in feature space, within a batch, are of one class", (START, BATCHES),
           "a matrix of affinities per batch, no parameter moves", _N + "LAME", statistics=()),
    Method("bn-matching", "Matching batch-normalisation statistics", "Ishii, Sugiyama, 2021", 14, "test-time",
           STATISTICS, (START, UNLABELLED), "training of the encoder on target images", _N + "statistics_divergences"),
    Method("advprop", "Auxiliary batch normalisation (AdvProp)", "Xie et al., CVPR 2020", 14, "multi-domain",
           "adversarial images are a domain of their own", ("labelled images",), "an attack per batch",
           "deeptransfer.attacks.auxiliary_loss"),
    Method("gated-bn", "Gated batch normalisation (GBN)", "Liu et al., 2020", 14, "multi-domain",
           "adversarial images are a domain of their own", ("labelled images",),
           "an attack of each kind per batch, a gate per layer", _N + "GatedBatchNorm2d"),
    Method("dson", "Domain-specific optimised normalisation (DSON)", "Seo et al., ECCV 2020", 15, "generalization",
           STYLE, (SEVERAL,), "moments of each image; a pass for each domain at test time", _N + "DSON2d",
           statistics=_BOTH),
    Method("domain-average", "Domain-specific batch normalisation, averaged",
           "the control of DSON: the ensemble without InstanceNorm", 15, "generalization", STATISTICS, (SEVERAL,),
           "a pass for each domain at test time", _N + "average_domains"),
    Method("bn-embeddings", "Batch-normalisation embeddings", "Segù, Tonioni, Tombari, 2020", 15, "generalization",
           "an unseen domain lies between those that were seen", (SEVERAL,), "a pass for each domain at test time",
           _N + "domain_branches"),
    Method("ibn", "Instance and batch normalisation (IBN)", "Pan, Luo, Shi, Tang, ECCV 2018", 15, "generalization",
           STYLE, (), "moments of each image", _N + "IBN2d", statistics=_BOTH),
    Method("mixstyle", "MixStyle", "Zhou, Yang, Qiao, Xiang, ICLR 2021", 15, "generalization", STYLE, (),
           "moments of each image", _N + "MixStyle", statistics=_IMAGE, edits=True),
    Method("crossnorm", "CrossNorm", "Tang et al., ICCV 2021", 15, "generalization", STYLE, (),
           "moments of each image", _N + "CrossNorm", statistics=_IMAGE, edits=True),
    Method("selfnorm", "SelfNorm", "Tang et al., ICCV 2021", 15, "generalization", STYLE, (),
           "moments of each image, two gates a channel", _N + "SelfNorm2d", statistics=_IMAGE),
    Method("isw", "Instance selective whitening (ISW)", "Choi et al., CVPR 2021", 15, "generalization",
           "style shows in which channels of an image correlate", ("a second style of each image",),
           "a C × C correlation of each image", _N + "InstanceWhitening2d", statistics=_IMAGE),
    Method("dsmnet", "Domain normalisation of DSMNet", "Zhang et al., ECCV 2020", 15, "generalization", STYLE, (),
           "moments of each image, a length of each position", _N + "PositionNorm2d", statistics=_IMAGE),
    Method("latent-domains", "Latent domains (mDA layers)", "Mancini et al., CVPR 2018", 16, "multi-domain",
           "the source mixes domains that nobody labelled", (UNLABELLED,),
           "a branch that assigns images to domains", _N + "WeightedBatchNorm2d"),
    Method("universal", "Universal representations: batch normalisation per domain", "Bilen, Vedaldi, 2017", 16,
           "multi-domain", RELATED, (SEVERAL,), "a scale, a shift and statistics per domain",
           _N + "DomainBatchNorm2d", {"shared_affine": False}),
    Method("camera-bn", "Camera-based batch normalisation", "Zhuang et al., ECCV 2020", 16, "multi-domain",
           STATISTICS, ("the camera of each image",), "as BatchNorm", _N + "DomainBatchNorm2d"),
    Method("adapters", "Residual adapters, parallel", "Rebuffi, Bilen, Vedaldi, CVPR 2018", 16, "multi-domain",
           RELATED, (SEVERAL,), "a 1 × 1 convolution per domain and layer", "deeptransfer.adapters.ResidualAdapter"),
    Method("adapters-series", "Residual adapters, in series", "Rebuffi, Bilen, Vedaldi, NeurIPS 2017", 16,
           "multi-domain", RELATED, (SEVERAL,), "a 1 × 1 convolution and a BatchNorm per domain and layer",
           "deeptransfer.adapters.ResidualAdapter", {"mode": "series"}),
    Method("covnorm", "Covariance normalisation (CovNorm)", "Li, Vasconcelos, CVPR 2019", 16, "multi-domain",
           "an adapter acts in few directions", (SEVERAL, "trained adapters"), "two eigendecompositions per adapter",
           "deeptransfer.adapters.CovNorm"),
    Method("adain", "Adaptive instance normalisation (AdaIN)", "Huang, Belongie, ICCV 2017", 17, "style",
           APPEARANCE, (ONE_IMAGE,), "two moments of each channel; a decoder, trained once",
           _S + "adaptive_instance_norm", statistics=_IMAGE, edits=True),
    Method("wct", "Whitening and colouring transform (WCT)", "Li, Fang, Yang, Wang, Lu, Yang, NeurIPS 2017", 17,
           "style", "style is in the means and covariances of an image's features, content in where they are",
           (ONE_IMAGE,), "two eigendecompositions, O(C³); a decoder, trained once", _S + "whiten_color",
           statistics=_IMAGE, edits=True),
    Method("gatys", "Neural style by Gram matrices", "Gatys, Ecker, Bethge, CVPR 2016", 17, "style",
           APPEARANCE, (ONE_IMAGE, "a network trained on photographs"), "an optimisation for each picture",
           _S + "StyleLoss", statistics=_IMAGE, edits=True),
    Method("conditional-norm", "Conditional normalisation", "Dumoulin, Shlens, Kudlur, ICLR 2017", 17, "style",
           "styles share all of a network but scales and shifts", (STYLES,), "2C numbers for each style and layer",
           _N + "ConditionalNorm2d", statistics=_BOTH, edits=True),
    Method("din", "Dynamic instance normalisation (DIN)", "Jing et al., AAAI 2020", 17, "style",
           APPEARANCE, (STYLES,), "networks that make filters from the style", _S + "dynamic_instance_norm",
           statistics=_IMAGE, edits=True),
    Method("munit-block", "Adaptive residual block (MUNIT)", "Huang, Liu, Belongie, Kautz, ECCV 2018", 17, "style",
           APPEARANCE, ("images of both domains",), "a generative adversarial network", _S + "AdaptiveResidualBlock",
           statistics=_IMAGE, edits=True),
    Method("gdwct", "Group-wise deep whitening and colouring (GDWCT)", "Cho, Choi, Park, Shin, Choo, CVPR 2019", 17,
           "style", "style is in means, and in covariances within groups of channels", ("images of both domains",),
           "a matrix for each group, made by a network; two penalties", _S + "GroupwiseWhitenColor",
           statistics=_IMAGE, edits=True),
    Method("region-norm", "Region normalisation", "Yu et al., AAAI 2020", 17, "style",
           "what fills a hole has other statistics than what is around it", ("a mask of the hole",),
           "moments of two regions of each image", _N + "RegionNorm2d", statistics=_IMAGE),
    Method("slimming", "Network slimming", "Liu et al., ICCV 2017", 19, "efficiency",
           "none: channels of a small scale say little", (), "a penalty on the scales; fine-tuning after the cut",
           "deeptransfer.pruning.sparsify_", statistics=()),
    Method("eagleeye", "Adaptive batch normalisation for pruning (EagleEye)", "Li, Wu, Su, Wang, ECCV 2020", 19,
           "efficiency", CHANGED, (START,), "a pass per layer for each candidate, fine-tuning of the best",
           "deeptransfer.pruning.random_channels"),
    Method("slimmable", "Slimmable networks (switchable BatchNorm)", "Yu, Yang, Xu, Yang, Huang, ICLR 2019", 19,
           "efficiency", CHANGED, (), "a pass for each width per step, a BatchNorm for each",
           _N + "SwitchableBatchNorm2d"),
    Method("us-nets", "Universally slimmable networks (US-Nets)", "Yu, Huang, ICCV 2019", 19, "efficiency", CHANGED,
           (), "a pass for each width per step; a pass per layer for each width that is used",
           "deeptransfer.slimmable.SlimmableBatchNorm2d"),
    Method("noise-aware", "Noise-aware batch normalisation", "Tsai et al., 2020", 19, "efficiency", CHANGED,
           (START, "unlabelled images on the device"), "a pass per layer for each device",
           "deeptransfer.weights.noisy_weights"),
    Method("spectral-norm", "Spectral normalisation (SN)", "Miyato, Kataoka, Koyama, Yoshida, ICLR 2018", 18, "weights",
           NO_SHIFT, (), "two products with each weight per training pass",
           "torch.nn.utils.parametrizations.spectral_norm", statistics=()),
    Method("oni", "Orthogonalisation by Newton's iteration (ONI)", "Huang et al., CVPR 2020", 18, "weights",
           NO_SHIFT, (), "two products of matrices per weight and iteration", _W + "NewtonOrthogonal", statistics=()),
    Method("demodulation", "Weight demodulation", "Karras et al., CVPR 2020", 18, "weights",
           "a style is a scale of each input channel", ("a style for each image",), "filters of its own for each image",
           _W + "modulated_conv2d", statistics=()),
)  # fmt: skip

_BY_NAME = {record.name: record for record in _RECORDS}


def methods(*kinds: Kind) -> tuple[Method, ...]:
    """All records, or those of the given kinds, in the order in which the book meets them."""
    return tuple(record for record in _RECORDS if not kinds or record.kind in kinds)


def objectives() -> tuple[Method, ...]:
    """The records of everything to train with."""
    return tuple(record for record in _RECORDS if record.is_objective)


def label(name: str) -> str:
    """Short words for a method in a figure: the abbreviation in its title, else the title.

    Parameters
    ----------
    name : str
        Of one method, or of several with " · " between them: ``"cdan+e · dsbn"``.
    """
    titles = [get(part).title for part in name.split(" · ")]
    short = [re.search(r"\(([A-Za-z][^()]*)\)$", title) for title in titles]
    return " · ".join(found[1] if found else title for found, title in zip(short, titles, strict=True))


def get(name: str) -> Method:
    """The record of a method.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones, and the nearest if one is near.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown method {name!r}: known ones are {', '.join(_BY_NAME)}{_nearest(name)}")
    return _BY_NAME[name]


def _nearest(given: Any) -> str:
    """The end of a message, for a misspelled name or for a class, or its name, in place of the method's."""
    spelled = {record.symbol.rpartition(".")[2].lower(): record.name for record in reversed(_RECORDS)}
    spelled |= {name: name for name in _BY_NAME}
    near = get_close_matches(getattr(given, "__name__", str(given)).lower(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""
