"""Wrong answers to the exercises of the chapter on unseen domains. The names are those of its notebook."""

# ruff: noqa: F821


def domain_moments__mean_of_the_variances(mean, var):
    return mean.mean(0), var.mean(0)


def domain_moments__variance_of_the_means(mean, var):
    return mean.mean(0), mean.var(0, correction=0)


def domain_moments__unbiased_between(mean, var):
    return mean.mean(0), var.mean(0) + mean.var(0)


def domain_moments__second_moment(mean, var):
    return mean.mean(0), (var + mean**2).mean(0)


def domain_moments__of_the_channels(mean, var):
    centre = mean.mean(1)
    return centre, var.mean(1) + mean.var(1, correction=0)


def restyled(x, order, share, detach=True, variances=False, swap=False):
    known = x.detach() if detach else x
    mean, var = known.mean((2, 3)), known.var((2, 3))
    deviation = (var + 1e-6).sqrt()
    share = 1 - share if swap else share
    new_mean = share * mean + (1 - share) * mean[order]
    if variances:
        new = (share * (var + 1e-6) + (1 - share) * (var + 1e-6)[order]).sqrt()
    else:
        new = share * deviation + (1 - share) * deviation[order]
    mean, deviation, new_mean, new = (v[..., None, None] for v in (mean, deviation, new_mean, new))
    return new * (x - mean) / deviation + new_mean


def mixstyle__gradient_through_the_style(x, order, share):
    return restyled(x, order, share, detach=False)


def mixstyle__variances_mixed(x, order, share):
    return restyled(x, order, share, variances=True)


def mixstyle__shares_exchanged(x, order, share):
    return restyled(x, order, share, swap=True)


def mixstyle__images_mixed(x, order, share):
    share = share[..., None, None]
    return share * x + (1 - share) * x[order]


def mixstyle__no_gradient_at_all(x, order, share):
    return mixstyle_solved(x, order, share).detach() + 0 * x


def mixstyle__exchanged(x, order, share):
    return restyled(x, order, torch.zeros_like(share))


def position_norm__length_first(x):
    return F.instance_norm(x / x.norm(dim=1, keepdim=True))


def position_norm__over_the_positions(x):
    z = F.instance_norm(x)
    return z / z.norm(dim=(2, 3), keepdim=True)


def position_norm__without_instance_norm(x):
    return x / x.norm(dim=1, keepdim=True)


def position_norm__mean_square(x):
    z = F.instance_norm(x)
    return z / z.square().mean(1, keepdim=True).sqrt()


def position_norm__sum_of_magnitudes(x):
    z = F.instance_norm(x)
    return z / z.abs().sum(1, keepdim=True)


def position_norm__length_detached(x):
    z = F.instance_norm(x)
    return z / z.norm(dim=1, keepdim=True).detach()
