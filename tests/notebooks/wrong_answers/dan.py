"""Wrong answers to the exercises of the chapter on DAN. The names are those of its notebook."""

# ruff: noqa: E731, F821

# Of fewer points than the notebook draws.
truth = {
    "spread": (lambda h: (h.mean(0), np.cov(h.T)))(terms(*two_samples(np.random.default_rng(0), "spread", 20_000)))
}


def free_weights__not_scaled(d, Q):
    return np.linalg.solve(Q, d)


def free_weights__sum_one(d, Q):
    beta = np.linalg.solve(Q, d)
    return beta / beta.sum()


def free_weights__without_correlations(d, Q):
    beta = d / np.diag(Q)
    return beta / (d @ beta)


def free_weights__not_negative(d, Q):
    beta = np.linalg.solve(Q, d).clip(0)
    return beta / (d @ beta)


def free_weights__unit_norm(d, Q):
    beta = np.linalg.solve(Q, d)
    return beta / np.linalg.norm(beta)


def squared_distances_by_hand(z):
    return ((z[:, None] - z) ** 2).sum(-1)


def blocks(k, n):
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def mixture(x, y, multipliers, spread_of, exponent=1.0):
    z, n = torch.cat([x, y]), len(x)
    d2 = squared_distances_by_hand(z)
    s = spread_of(d2, n)
    return sum(torch.exp(-exponent * d2 / (m * s)) for m in multipliers) / len(multipliers), n


def off_diagonal(d2, n):
    return d2.detach().sum() / (len(d2) * (len(d2) - 1))


def mk_mmd2__sum_of_kernels(x, y, multipliers):
    return len(multipliers) * mk_mmd2_solved(x, y, multipliers)


def mk_mmd2__mean_with_the_diagonal(x, y, multipliers):
    return blocks(*mixture(x, y, multipliers, lambda d2, n: d2.detach().mean()))


def mk_mmd2__spread_across_domains(x, y, multipliers):
    return blocks(*mixture(x, y, multipliers, lambda d2, n: d2.detach()[:n, n:].mean()))


def mk_mmd2__gradient_through_the_spread(x, y, multipliers):
    return blocks(*mixture(x, y, multipliers, lambda d2, n: d2.sum() / (len(d2) * (len(d2) - 1))))


def mk_mmd2__bandwidth_taken_for_sigma_squared(x, y, multipliers):
    return blocks(*mixture(x, y, multipliers, off_diagonal, exponent=0.5))


def mk_mmd2__root_of_distances(x, y, multipliers):
    z, n = torch.cat([x, y]), len(x)
    d = squared_distances_by_hand(z).clamp(min=1e-12).sqrt()
    s = d.detach().sum() / (len(z) * (len(z) - 1))
    return blocks(sum(torch.exp(-d / (m * s)) for m in multipliers) / len(multipliers), n)


def mk_mmd2__halves_of_equal_size(x, y, multipliers):
    k, _ = mixture(x, y, multipliers, off_diagonal)
    return blocks(k, len(k) // 2)


def mk_mmd2__product_of_kernels(x, y, multipliers):
    z, n = torch.cat([x, y]), len(x)
    d2 = squared_distances_by_hand(z)
    return blocks(torch.exp(-sum(d2 / (m * off_diagonal(d2, n)) for m in multipliers)), n)


def mk_mmd2__own_spread_of_each_block(x, y, multipliers):
    def mean_kernel(a, b):
        d2 = ((a[:, None] - b) ** 2).sum(-1)
        return sum(torch.exp(-d2 / (m * d2.detach().mean())).mean() for m in multipliers) / len(multipliers)

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def mk_mmd2__unbiased(x, y, multipliers):
    return MultiKernelMMD(multipliers, estimator="unbiased")(x, y)


def mk_mmd2__without_gradient(x, y, multipliers):
    return mk_mmd2_solved(x, y, multipliers).detach()


def paired(x, y, sigma2, pairings, orders):
    values = [linear_time_mmd2(*orders(), sigma2) for _ in range(pairings)]
    return torch.stack(values)


def over_pairings__as_given(x, y, sigma2, pairings, rng):
    return linear_time_mmd2(x, y, sigma2)


def over_pairings__one_order_for_both(x, y, sigma2, pairings, rng):
    def orders():
        order = rng.permutation(len(x))
        return x[order], y[order]

    return paired(x, y, sigma2, pairings, orders).mean()


def over_pairings__source_alone(x, y, sigma2, pairings, rng):
    return paired(x, y, sigma2, pairings, lambda: (x[rng.permutation(len(x))], y)).mean()


def over_pairings__sum(x, y, sigma2, pairings, rng):
    return pairings * over_pairings_solved(x, y, sigma2, pairings, rng)


def over_pairings__drawn_with_replacement(x, y, sigma2, pairings, rng):
    draw = lambda z: z[rng.integers(len(z), size=len(z))]
    return paired(x, y, sigma2, pairings, lambda: (draw(x), draw(y))).mean()


def relearned__weights_learned_once(x, y, rng):
    beta, n = learn(x, y), len(x)
    ratio = lambda a, b: (lambda h: h.mean() / h.std(ddof=1))(terms(a, b) @ beta)
    dealt = [rng.permutation(np.concatenate([x, y])) for _ in range(19)]
    return all(ratio(z[:n], z[n:]) < ratio(x, y) for z in dealt)


def relearned__domains_not_mixed(x, y, rng):
    observed = best_ratio(x, y)
    return all(best_ratio(rng.permutation(x), rng.permutation(y)) < observed for _ in range(19))


def relearned__larger_than_one_of_them(x, y, rng):
    n, observed = len(x), best_ratio(x, y)
    dealt = [rng.permutation(np.concatenate([x, y])) for _ in range(19)]
    return any(best_ratio(z[:n], z[n:]) < observed for z in dealt)


def relearned__larger_than_the_mean(x, y, rng):
    n, observed = len(x), best_ratio(x, y)
    dealt = [rng.permutation(np.concatenate([x, y])) for _ in range(19)]
    return np.mean([best_ratio(z[:n], z[n:]) for z in dealt]) < observed
