"""Wrong answers to the exercises of the chapter on many domains. The names are those of its notebook."""

# ruff: noqa: F821


def parts(x, w, eps):
    """Normalised images (K, N, C, H, W), variances (K, C) and the sums of weights over positions."""
    total = w.sum(0) * x[0, 0].numel()
    mean = torch.einsum("nk,nchw->kc", w, x) / total[:, None]
    centred = x - mean[:, None, :, None, None]
    var = torch.einsum("nk,knchw->kc", w, centred**2) / total[:, None]
    return centred / (var + eps).sqrt()[:, None, :, None, None], var, total


def add(scaled, w):
    return torch.einsum("nk,knchw->nchw", w, scaled)


def through(x, w, delta, eps, of_one=False):
    """The terms of the gradient: direct, through the means, through the variances."""
    scaled, var, total = parts(x, w, eps)
    a = torch.einsum("nk,nchw->kc", w, delta)
    b = torch.einsum("nk,nchw,knchw->kc", w, delta, scaled)
    direct = torch.einsum("knchw,nchw->nk", scaled, delta)
    by_mean = torch.einsum("kc,knchw->nk", a, scaled) / total
    constant = torch.ones_like(var) if of_one else var / (var + eps)
    squares = scaled**2 - constant[:, None, :, None, None]
    return direct, by_mean, torch.einsum("kc,knchw->nk", b, squares) / (2 * total)


def weighted_norm__detached_moments(x, w, delta, eps):
    return add(parts(x, w, eps)[0], w), through(x, w, delta, eps)[0]


def weighted_norm__no_way_through_the_variance(x, w, delta, eps):
    direct, by_mean, _ = through(x, w, delta, eps)
    return add(parts(x, w, eps)[0], w), direct - by_mean


def weighted_norm__one_in_place_of_the_shrunken_variance(x, w, delta, eps):
    direct, by_mean, by_var = through(x, w, delta, eps, of_one=True)
    return add(parts(x, w, eps)[0], w), direct - by_mean - by_var


def weighted_norm__half_forgotten(x, w, delta, eps):
    direct, by_mean, by_var = through(x, w, delta, eps)
    return add(parts(x, w, eps)[0], w), direct - by_mean - 2 * by_var


def weighted_norm__mixes_the_moments(x, w, delta, eps):
    """One mean and one variance for each image, in place of a sum of results."""
    total = w.sum(0) * x[0, 0].numel()
    mean = torch.einsum("nk,nchw->kc", w, x) / total[:, None]
    var = torch.einsum("nk,knchw->kc", w, (x - mean[:, None, :, None, None]) ** 2) / total[:, None]
    own_mean, own_var = w @ mean, w @ var
    y = (x - own_mean[:, :, None, None]) / (own_var + eps).sqrt()[:, :, None, None]
    return y, sum(through(x, w, delta, eps))


def folded__adds_to_every_tap(conv, matrix):
    return conv.weight + matrix


def folded__corner(conv, matrix):
    kernel = conv.weight.detach().clone()
    kernel[:, :, 0, 0] += matrix[:, :, 0, 0]
    return kernel


def folded__replaces_the_middle(conv, matrix):
    kernel = conv.weight.detach().clone()
    middle = kernel.shape[2] // 2
    kernel[:, :, middle, middle] = matrix[:, :, 0, 0]
    return kernel


def folded__always_the_second_tap(conv, matrix):
    kernel = conv.weight.detach().clone()
    second = min(1, kernel.shape[2] - 1)
    kernel[:, :, second, second] += matrix[:, :, 0, 0]
    return kernel


def largest_rank__as_for_the_singular_values(d):
    return (d - 1) // 2


def largest_rank__rounds(d):
    return round((2**0.5 - 1) * d)


def largest_rank__forgets_the_mixing(d):
    return max(k for k in range(d) if 2 * k * d < d * d)
