"""Wrong answers to the exercises of the chapter on AdaBN. The names are those of its notebook."""

# ruff: noqa: F821

network = small_cnn(widths=(8, 16, 32), hidden=(64,), seed=0).double().eval()  # for the trained one


def population_variance__mean_of_the_batches(mean, var, n):
    return var.mean()


def population_variance__unbiased_kept(mean, var, n):
    return var.mean() + mean.var(correction=0)


def population_variance__between_unbiased(mean, var, n):
    return (var * (n - 1) / n).mean() + mean.var()


def population_variance__nothing_between(mean, var, n):
    return (var * (n - 1) / n).mean()


def population_variance__unbiased_twice(mean, var, n):
    return (var * n / (n - 1)).mean() + mean.var(correction=0)


def population_variance__unbiased_result(mean, var, n):
    return population_variance_solved(mean, var, n) * len(mean) * n / (len(mean) * n - 1)


def merged(batches, between=lambda s: s * (1 - s), share=lambda n_b, n: n_b / n, factor=lambda n_b: 1):
    n, mean, var = 0, 0.0, 0.0
    for batch in batches:
        rows = batch.transpose(0, 1).flatten(1)
        var_b, mean_b = torch.var_mean(rows, 1, correction=0)
        var_b = var_b * factor(rows.shape[1])
        n += rows.shape[1]
        s, delta = share(rows.shape[1], n), mean_b - mean
        mean, var = mean + s * delta, (1 - s) * var + s * var_b + between(s) * delta**2
    return mean, var


def population__nothing_between(batches):
    return merged(batches, between=lambda s: 0)


def population__between_not_halved(batches):
    return merged(batches, between=lambda s: s)


def population__unbiased_batches(batches):
    return merged(batches, factor=lambda n_b: n_b / max(n_b - 1, 1))


def population__running_average(batches):
    return merged(batches, share=lambda n_b, n: 1.0 if n_b == n else 0.1)


def population__batches_alike(batches):
    rows = [batch.transpose(0, 1).flatten(1) for batch in batches]
    means = torch.stack([r.mean(1) for r in rows])
    return means.mean(0), torch.stack([r.var(1, correction=0) for r in rows]).mean(0) + means.var(0, correction=0)


def population__mean_of_squares(batches):
    n, first, second = 0, 0.0, 0.0
    for batch in batches:
        rows = batch.transpose(0, 1).flatten(1)
        n, first, second = n + rows.shape[1], first + rows.sum(1), second + rows.square().sum(1)
    return first / n, second / n - (first / n) ** 2


def population__unbiased_result(batches):
    rows = torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], 1)
    return rows.mean(1), rows.var(1)


def population__standard_deviation(batches):
    mean, var = population_solved(batches)
    return mean, var.sqrt()


def population__last_batch(batches):
    rows = list(batches)[-1].transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


def population__exchanged(batches):
    return population_solved(batches)[::-1]


def read_both__not_adapted(network, images):
    return convert_norm(copy.deepcopy(network), DomainBatchNorm2d)


def read_both__adapted_before_the_conversion(network, images):
    return convert_norm(adapt_statistics(copy.deepcopy(network), images), DomainBatchNorm2d)


def read_both__in_place(network, images):
    return adapt_statistics(convert_norm(network, DomainBatchNorm2d), images)


def read_both__one_pass_over_small_batches(network, images):
    both = convert_norm(copy.deepcopy(network), DomainBatchNorm2d)
    return adapt_statistics(both, images.split(8), passes=1)


def read_both__running_average(network, images):
    both = convert_norm(copy.deepcopy(network), DomainBatchNorm2d)
    return adapt_statistics(both, images.split(50), "ema")


def read_both__other_images(network, images):
    both = convert_norm(copy.deepcopy(network), DomainBatchNorm2d)
    return adapt_statistics(both, images[:100])


def adapt_blocks__all_layers(network, images):
    return adapt_statistics(copy.deepcopy(network), images)


def adapt_blocks__raw_images(network, images):
    network = copy.deepcopy(network)
    adapt_statistics(network.features[:3], images)
    return network


def adapt_blocks__in_place(network, images):
    adapt_statistics(network.features[:3], network.standardize(images))
    return network


def adapt_blocks__not_adapted(network, images):
    return copy.deepcopy(network)


def adapt_blocks__first_two(network, images):
    network = copy.deepcopy(network)
    adapt_statistics(network.features[:2], network.standardize(images))
    return network


def adapt_blocks__variances_alone(network, images):
    adapted, before = adapt_blocks_solved(network, images), norm_layers(network)
    for layer, old in zip(norm_layers(adapted), before, strict=True):
        layer.running_mean.copy_(old.running_mean)
    return adapted
