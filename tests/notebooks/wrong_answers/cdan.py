"""Wrong answers to the exercises of the chapter on CDAN. The names are those of its notebook."""

# ruff: noqa: F821


def cdan_e(
    D,
    features,
    logits,
    lambda_,
    *,
    condition=lambda z: z.detach().softmax(1),
    of_features=gradient_reversal,
    of_weights=gradient_reversal,
    weight=lambda log_g: 1 + torch.exp((log_g.exp() * log_g).sum(1)),
    denominator=lambda w, both: w.detach().mean(),
    product=lambda f, g: (f[:, :, None] * g[:, None, :]).flatten(1),
    signs=(-1, 1),
):
    weights = [weight(of_weights(z, lambda_).log_softmax(1)) for z in logits]
    loss = 0
    for f, z, w, sign in zip(features, logits, weights, signs, strict=True):
        rows = F.softplus(sign * D(product(of_features(f, lambda_), condition(z))))
        loss = loss + (w / denominator(w, torch.cat(weights)) * rows).mean() / 2
    return loss


def cdan_e_loss__condition_not_detached(*given):
    return cdan_e(*given, condition=lambda z: z.softmax(1))


def cdan_e_loss__condition_is_one_hot(*given):
    return cdan_e(*given, condition=lambda z: F.one_hot(z.argmax(1), 4).double())


def cdan_e_loss__condition_is_the_logits(*given):
    return cdan_e(*given, condition=lambda z: z.detach())


def cdan_e_loss__weights_not_reversed(*given):
    return cdan_e(*given, of_weights=lambda z, _: z)


def cdan_e_loss__weights_detached(*given):
    return cdan_e(*given, of_weights=lambda z, _: z.detach())


def cdan_e_loss__weights_reversed_with_one(*given):
    return cdan_e(*given, of_weights=lambda z, _: gradient_reversal(z, 1.0))


def cdan_e_loss__features_not_reversed(*given):
    return cdan_e(*given, of_features=lambda f, _: f)


def cdan_e_loss__features_detached(*given):
    return cdan_e(*given, of_features=lambda f, _: f.detach())


def cdan_e_loss__no_weights(*given):
    return cdan_e(*given, weight=lambda log_g: 1 + 0 * log_g.sum(1))


def cdan_e_loss__no_one_in_the_weights(*given):
    return cdan_e(*given, weight=lambda log_g: torch.exp((log_g.exp() * log_g).sum(1)))


def cdan_e_loss__unsure_rows_count_more(*given):
    return cdan_e(*given, weight=lambda log_g: 1 + torch.exp(-(log_g.exp() * log_g).sum(1)))


def cdan_e_loss__no_denominator(*given):
    return cdan_e(*given, denominator=lambda w, both: 1.0)


def cdan_e_loss__denominator_of_both(*given):
    return cdan_e(*given, denominator=lambda w, both: both.detach().mean())


def cdan_e_loss__denominator_is_the_largest(*given):
    return cdan_e(*given, denominator=lambda w, both: w.detach().max())


def cdan_e_loss__denominator_is_the_sum(*given):
    return cdan_e(*given, denominator=lambda w, both: w.detach().sum())


def cdan_e_loss__denominator_not_detached(*given):
    return cdan_e(*given, denominator=lambda w, both: w.mean())


def cdan_e_loss__product_transposed(*given):
    return cdan_e(*given, product=lambda f, g: (g[:, :, None] * f[:, None, :]).flatten(1))


def cdan_e_loss__labels_exchanged(*given):
    return cdan_e(*given, signs=(1, -1))


def cdan_e_loss__domains_added(*given):
    return 2 * cdan_e(*given)


def cdan_e_loss__weight_in_front(D, features, logits, lambda_):
    return lambda_ * cdan_e(D, features, logits, 1.0)


def coefficients__denominators_detached(ell, H):
    w = 1 + torch.exp(-H)
    return ell * torch.exp(-H) / (2 * w.sum(1, keepdim=True))


def coefficients__not_halved(ell, H):
    return 2 * coefficients_solved(ell, H)


def coefficients__turned_round(ell, H):
    return -coefficients_solved(ell, H)


def coefficients__plain_mean(ell, H):
    w = 1 + torch.exp(-H)
    return 0.5 * torch.exp(-H) * (ell - ell.mean(1, keepdim=True)) / w.sum(1, keepdim=True)


def coefficients__both_domains_together(ell, H):
    w = 1 + torch.exp(-H)
    return 0.5 * torch.exp(-H) * (ell - (w * ell).sum() / w.sum()) / w.sum()


def coefficients__slope_of_the_weight_left_out(ell, H):
    return coefficients_solved(ell, H) * torch.exp(H)


def coefficients__one_for_a_domain(ell, H):
    return coefficients_solved(ell, H).mean(1, keepdim=True)


def tell_apart__linear(source, target):
    x, y = np.concatenate([source, target]), np.repeat([1, 0], [len(source), len(target)])
    return LogisticRegression().fit(x, y).score(x, y)


def tell_apart__share_of_mistakes(source, target):
    return 1 - tell_apart_solved(source, target)


def tell_apart__one_domain(source, target):
    x = np.concatenate([source, target])
    y = np.repeat([1, 0], [len(source), len(target)])
    return MLPClassifier((32,), solver="lbfgs", max_iter=500, random_state=0).fit(x, y).score(source, y[: len(source)])


def tell_apart__loss(source, target):
    return discriminate(source, target)[1]


def width_for__not_squared(error):
    return 8 / error


def width_for__standard_deviation_for_variance(error):
    return (8 / error) ** 0.5


def width_for__nine(error):
    return 9 / error**2


def width_for__turned_over(error):
    return error**2 / 8
