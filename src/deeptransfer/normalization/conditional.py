"""Scale and shift from somewhere else: a class, a style, a noise vector, a mapping network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .passes import wide


class ConditionalNorm2d(nn.Module):
    r"""A normalisation whose scale and shift are computed from a condition.

    .. math:: y_i = \gamma(c_i)\,\mathrm{norm}(x)_i + \beta(c_i)

    One layer for what the literature has under many names: ``norm`` says which statistics, ``affine_from`` where γ and
    β come from.

    ============================  =================================  ============================================
    name                          ``norm``                           ``affine_from``
    ============================  =================================  ============================================
    conditional InstanceNorm      ``InstanceNorm2d(C)``              ``nn.Embedding(styles, 2 * C)``
    conditional BatchNorm         ``BatchNorm2d(C, affine=False)``   ``nn.Embedding(classes, 2 * C)``
    self-modulation               ``BatchNorm2d(C, affine=False)``   ``Linear, ReLU, Linear(32, 2 * C)`` of z
    StyleGAN's AdaIN              ``InstanceNorm2d(C)``              ``nn.Linear(w, 2 * C)`` of w
    statistics of each domain     ``DomainBatchNorm2d(C, domains)``  any of these
    ============================  =================================  ============================================

    It starts as the plain norm: the last layer of ``affine_from`` is set to give γ = 1 and β = 0 for every condition.

    Parameters
    ----------
    norm
        Without a scale and shift of its own (``affine=False``); a domain layer's are kept at 1 and 0 and don't train.
    affine_from
        An ``nn.Embedding`` with 2C columns, or a module that ends in an ``nn.Linear`` with bias and 2C outputs: first
        γ, then β.

    Raises
    ------
    ValueError
        If the norm has a scale of its own or no channels, or ``affine_from`` does not end in 2C numbers.

    Notes
    -----
    Weight decay draws γ and β of a table to 0, those of conditions that are absent from the batch, too: keep the table
    out of it. A BatchNorm's running statistics are those of the conditions that training drew: for another mixture, or
    for latent vectors drawn otherwise, give it new ones by :func:`~deeptransfer.normalization.adapt_statistics`.

    Some releases compute 1 + γ or start γ near 0 (weights drawn around 0 and no bias).

    References
    ----------
    V. Dumoulin, J. Shlens, M. Kudlur. A Learned Representation for Artistic Style. ICLR 2017.
    T. Miyato, M. Koyama. cGANs with Projection Discriminator. ICLR 2018.
    T. Chen, M. Lucic, N. Houlsby, S. Gelly. On Self Modulation for Generative Adversarial Networks. ICLR 2019.
    T. Karras, S. Laine, T. Aila. A Style-Based Generator Architecture for Generative Adversarial Networks. CVPR 2019.
    """

    def __init__(self, norm: nn.Module, affine_from: nn.Module) -> None:
        super().__init__()
        channels = getattr(norm, "num_features", getattr(norm, "num_channels", None))
        if not isinstance(channels, int):
            raise ValueError(
                f"{type(norm).__name__} does not tell its channels: use a BatchNorm, InstanceNorm or GroupNorm"
            )
        if isinstance(norm, DomainNorm):
            norm.weight.requires_grad_(False).fill_(1)
            norm.bias.requires_grad_(False).fill_(0)
        elif getattr(norm, "weight", None) is not None:
            raise ValueError(
                f"{type(norm).__name__} has a scale of its own, and two are one too many: give affine=False"
            )
        self.num_features, self.norm, self.affine_from = channels, norm, affine_from
        self._start(affine_from)

    @torch.no_grad()
    def _start(self, affine_from: nn.Module) -> None:
        *_, last = affine_from.modules()
        c = self.num_features
        if isinstance(last, nn.Embedding) and last.embedding_dim == 2 * c:
            rows: Tensor = last.weight
        elif isinstance(last, nn.Linear) and last.out_features == 2 * c and last.bias is not None:
            last.weight.zero_()
            rows = last.bias
        else:
            raise ValueError(
                f"for {c} channels affine_from must be an nn.Embedding with {2 * c} columns, or end in an nn.Linear "
                f"with bias and {2 * c} outputs; it ends in {last}"
            )
        rows[..., :c] = 1
        rows[..., c:] = 0

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)`` and apply γ and β of each image's condition.

        Parameters
        ----------
        x
            The batch.
        condition
            For a table the number of each image's row, integers ``(N,)``, or weights of its rows ``(N, rows)``: a
            mixture. For a network its input, ``(N, ...)``.

        Raises
        ------
        ValueError
            If there is no condition for each image, or a row does not exist.
        """
        if condition.dim() == 0 or len(condition) != len(x):
            raise ValueError(
                f"got a condition of shape {tuple(condition.shape)} for {len(x)} images: give one for each"
            )
        gamma, beta = wide(self._affine(condition)).chunk(2, 1)
        y = self.norm(x)
        return torch.addcmul(beta[:, :, None, None], gamma[:, :, None, None], y).to(x.dtype)

    def _affine(self, condition: Tensor) -> Tensor:
        table = self.affine_from
        if not isinstance(table, nn.Embedding):
            return table(condition)
        if condition.is_floating_point():
            if condition.shape[1:] != (table.num_embeddings,):
                raise ValueError(
                    f"an image needs weights of {table.num_embeddings} rows, got shape {tuple(condition.shape)}"
                )
            return condition @ table.weight
        # On a GPU a look would wait; there the kernel asserts.
        if condition.device.type == "cpu" and not ((condition >= 0) & (condition < table.num_embeddings)).all():
            raise ValueError(
                f"condition holds numbers from {condition.min()} to {condition.max()}, and the table has rows 0 to "
                f"{table.num_embeddings - 1}"
            )
        return table(condition)
