"""Wrong answers to the exercises of the page on whitening. The names are those of its notebook."""

# ruff: noqa: F821


def whitened(x, group_size, shrinkage, cov=None, side="left", centre=True):
    """What the wrong layers share: each says what its covariance and its triangle are."""
    centred = (x - x.mean(0) if centre else x).unflatten(1, (-1, group_size)).permute(1, 2, 0)
    product = centred @ centred.mT / len(x)
    matrix = product if cov is None else cov(product, centred)
    eye = torch.eye(group_size, dtype=x.dtype)
    factor = torch.linalg.cholesky((1 - shrinkage) * matrix + shrinkage * eye)
    inverse = torch.linalg.inv(factor)
    z = (inverse if side == "left" else inverse.mT) @ centred
    return z.permute(2, 0, 1).flatten(1)


def whiten__no_groups(x, group_size, shrinkage):
    return whitened(x, x.shape[1], shrinkage)


def whiten__unbiased(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, lambda cov, z: cov * len(x) / (len(x) - 1))


def whiten__no_shrinkage(x, group_size, shrinkage):
    return whitened(x, group_size, 0.0)


def whiten__added_without_the_share(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, lambda cov, z: cov / (1 - shrinkage))


def whiten__diagonal_alone(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, lambda cov, z: torch.diag_embed(cov.diagonal(dim1=1, dim2=2)))


def whiten__factor_transposed(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, side="right")


def whiten__not_centred(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, centre=False)


def whiten__covariance_without_gradient(x, group_size, shrinkage):
    return whitened(x, group_size, shrinkage, lambda cov, z: cov.detach())


def whiten__every_other_channel(x, group_size, shrinkage):
    order = torch.arange(x.shape[1]).view(group_size, -1).T.flatten()
    return whiten_solved(x[:, order], group_size, shrinkage)[:, order.argsort()]


def whiten__symmetric(x, group_size, shrinkage):
    centred = (x - x.mean(0)).unflatten(1, (-1, group_size)).permute(1, 2, 0)
    eye = torch.eye(group_size, dtype=x.dtype)
    values, vectors = torch.linalg.eigh((1 - shrinkage) * (centred @ centred.mT) / len(x) + shrinkage * eye)
    z = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT @ centred
    return z.permute(2, 0, 1).flatten(1)


def slope_with(logits, label, factor):
    label = F.one_hot(label, logits.shape[1])
    return (logits.softmax(1) - label) * factor


def mec_slope__label_of_the_first_view(logits, logits2):
    return slope_with(logits, logits.argmax(1), 1 / (2 * len(logits)))


def mec_slope__label_of_the_second_view(logits, logits2):
    return slope_with(logits, logits2.argmax(1), 1 / (2 * len(logits)))


def mec_slope__logits_added(logits, logits2):
    mean = (logits.softmax(1) + logits2.softmax(1)) / 2
    return (mean - F.one_hot(mean.argmax(1), logits.shape[1])) / (2 * len(logits))


def mec_slope__not_halved(logits, logits2):
    return 2 * mec_slope_solved(logits, logits2)


def mec_slope__sum_over_images(logits, logits2):
    return len(logits) * mec_slope_solved(logits, logits2) + 0 * logits2


def mec_slope__upwards(logits, logits2):
    return -mec_slope_solved(logits, logits2)


def mec_slope__of_the_second_view(logits, logits2):
    return mec_slope_solved(logits2, logits)


def zca__cholesky(cov):
    return torch.linalg.cholesky(cov).inverse()


def zca__root_itself(cov):
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T


def zca__inverse(cov):
    return cov.inverse()


def zca__in_the_axes_of_the_cloud(cov):
    values, vectors = torch.linalg.eigh(cov)
    return torch.diag(values.rsqrt()) @ vectors.T


def zca__vectors_transposed(cov):
    values, vectors = torch.linalg.eigh(cov)
    return vectors.T @ torch.diag(values.rsqrt()) @ vectors


def zca__turned_over(cov):
    return -zca_solved(cov)


def zca__one_channel_turned_over(cov):
    values, vectors = torch.linalg.eigh(cov)
    signs = torch.ones_like(values)
    signs[0] = -1
    return vectors @ torch.diag(signs * values.rsqrt()) @ vectors.T


def zca__each_channel_alone(cov):
    return torch.diag(cov.diagonal().rsqrt())
