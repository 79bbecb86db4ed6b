"""Wrong answers to the exercises of the chapter on MMD. The names are those of its notebook."""

# ruff: noqa: F821


def bias__of_one_sample(n, m, d, sigma2):
    return (1 - (1 + 2 / sigma2) ** (-d / 2)) / n


def bias__variance_of_the_difference_is_one(n, m, d, sigma2):
    return (1 / n + 1 / m) * (1 - (1 + 1 / sigma2) ** (-d / 2))


def bias__one_coordinate(n, m, d, sigma2):
    return (1 / n + 1 / m) * (1 - (1 + 2 / sigma2) ** -0.5)


def bias__without_the_root(n, m, d, sigma2):
    return (1 / n + 1 / m) * (1 - (1 + 2 / sigma2) ** -d)


def bias__of_the_pooled_size(n, m, d, sigma2):
    return 4 / (n + m) * (1 - (1 + 2 / sigma2) ** (-d / 2))


def bias__of_the_diagonal_alone(n, m, d, sigma2):
    return 1 / n + 1 / m


def mmd2_with__always_biased(kernel, x, y, unbiased):
    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def mmd2_with__cross_term_once(kernel, x, y, unbiased):
    return 2 * mmd2_with_solved(kernel, x, y, unbiased) / 2 + kernel(x, y).mean()


def mmd2_with__diagonal_taken_for_one(kernel, x, y, unbiased):
    within = 0
    for z in (x, y):
        k, n = kernel(z, z), len(z)
        within += (k.sum() - n) / (n * (n - 1)) if unbiased else k.mean()
    return within - 2 * kernel(x, y).mean()


def mmd2_with__unbiased_cross_term(kernel, x, y, unbiased):
    value = mmd2_with_solved(kernel, x, y, unbiased)
    n, m = len(x), len(y)
    return value - 2 * kernel(x, y).sum() * (1 / (n * (m - 1)) - 1 / (n * m)) if unbiased else value


def mmd2_with__trace_for_the_sum(kernel, x, y, unbiased):
    return kernel(x, x).trace() / len(x) ** 2 + kernel(y, y).trace() / len(y) ** 2 - 2 * kernel(x, y).mean()


def mmd2_with__root(kernel, x, y, unbiased):
    return mmd2_with_solved(kernel, x, y, unbiased).abs().sqrt()


def share(pairs, test):
    return np.mean([test(i, a, b) for i, (a, b) in enumerate(pairs)])


def power__sigma_for_its_square(pairs, sigma):
    return share(pairs, lambda i, a, b: mmd_test(a, b, sigma2=sigma, permutations=99, seed=i).p_value <= 0.05)


def power__default_bandwidth(pairs, sigma):
    return share(pairs, lambda i, a, b: mmd_test(a, b, permutations=99, seed=i).p_value <= 0.05)


def power__share_that_is_not_found(pairs, sigma):
    return 1 - power_solved(pairs, sigma)


def power__mean_p(pairs, sigma):
    return share(pairs, lambda i, a, b: mmd_test(a, b, sigma2=sigma**2, permutations=99, seed=i).p_value)
