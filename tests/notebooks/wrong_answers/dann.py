"""Wrong answers to the exercises of the chapter on DANN. The names are those of its notebook."""

# ruff: noqa: F821


def slope(f, w):
    return 0.5 / (1 + math.exp(-w * f))


def take_turns__at_once(f, w, eta):
    s = slope(f, w)
    return f + eta * s * w, w - eta * s * f


def take_turns__slope_of_the_old_w(f, w, eta):
    s = slope(f, w)
    w -= eta * s * f
    return f + eta * s * w, w


def take_turns__f_first(f, w, eta):
    f += eta * slope(f, w) * w
    return f, w - eta * slope(f, w) * f


def take_turns__w_upwards(f, w, eta):
    w += eta * slope(f, w) * f
    return f - eta * slope(f, w) * w, w


def take_turns__exchanged(f, w, eta):
    return take_turns_solved(f, w, eta)[::-1]


def take_turns__f_downwards(f, w, eta):
    w -= eta * slope(f, w) * f
    return f - eta * slope(f, w) * w, w


def logits_of(discriminator, f_s, f_t, turned):
    return discriminator(turned(f_s)), discriminator(turned(f_t))


def l_d(z_s, z_t):
    return (F.softplus(-z_s).mean() + F.softplus(z_t).mean()) / 2


def turned_by(lambda_):
    return lambda f: (1 + lambda_) * f.detach() - lambda_ * f


def adversarial_loss__no_reversal(discriminator, f_s, f_t, lambda_):
    return l_d(*logits_of(discriminator, f_s, f_t, lambda f: f))


def adversarial_loss__detached(discriminator, f_s, f_t, lambda_):
    return l_d(discriminator(f_s.detach()), discriminator(f_t.detach()))


def adversarial_loss__weight_in_front(discriminator, f_s, f_t, lambda_):
    return lambda_ * l_d(*logits_of(discriminator, f_s, f_t, turned_by(1.0)))


def adversarial_loss__weight_twice(discriminator, f_s, f_t, lambda_):
    return lambda_ * l_d(*logits_of(discriminator, f_s, f_t, turned_by(lambda_)))


def adversarial_loss__minus_the_loss(discriminator, f_s, f_t, lambda_):
    return -lambda_ * l_d(*logits_of(discriminator, f_s, f_t, lambda f: f))


def adversarial_loss__without_weight(discriminator, f_s, f_t, lambda_):
    return l_d(*logits_of(discriminator, f_s, f_t, turned_by(1.0)))


def adversarial_loss__not_turned_round(discriminator, f_s, f_t, lambda_):
    return l_d(*logits_of(discriminator, f_s, f_t, turned_by(-lambda_)))


def adversarial_loss__reversal_behind_the_discriminator(discriminator, f_s, f_t, lambda_):
    return l_d(*map(turned_by(lambda_), logits_of(discriminator, f_s, f_t, lambda f: f)))


def adversarial_loss__target_alone(discriminator, f_s, f_t, lambda_):
    return l_d(discriminator(f_s), discriminator(turned_by(lambda_)(f_t)))


def adversarial_loss__forward_turned_round_too(discriminator, f_s, f_t, lambda_):
    return l_d(*logits_of(discriminator, f_s, f_t, lambda f: -lambda_ * f))


def adversarial_loss__mean_over_all_rows(discriminator, f_s, f_t, lambda_):
    z_s, z_t = logits_of(discriminator, f_s, f_t, turned_by(lambda_))
    return torch.cat([F.softplus(-z_s), F.softplus(z_t)]).mean()


def adversarial_loss__domains_added(discriminator, f_s, f_t, lambda_):
    return 2 * l_d(*logits_of(discriminator, f_s, f_t, turned_by(lambda_)))


def adversarial_loss__labels_exchanged(discriminator, f_s, f_t, lambda_):
    z_s, z_t = logits_of(discriminator, f_s, f_t, turned_by(lambda_))
    return l_d(z_t, z_s)


def adversarial_loss__logarithm_of_a_probability(discriminator, f_s, f_t, lambda_):
    q_s, q_t = (z.sigmoid() for z in logits_of(discriminator, f_s, f_t, turned_by(lambda_)))
    return -(q_s.log().mean() + (1 - q_t).log().mean()) / 2


def slip_factors__as_without_the_slip(lambda_):
    return 1.0, lambda_


def slip_factors__both_once(lambda_):
    return lambda_, lambda_


def slip_factors__exchanged(lambda_):
    return lambda_**2, lambda_


def slip_factors__both_twice(lambda_):
    return lambda_**2, lambda_**2


def slip_factors__reversed(lambda_):
    return lambda_, -(lambda_**2)


def perfect_js__sum(p, q):
    return 2 * perfect_js_solved(p, q)


def perfect_js__of_the_densities_themselves(p, q):
    return rel_entr(p, q).sum()


def perfect_js__base_two(p, q):
    return perfect_js_solved(p, q) / math.log(2)


def perfect_js__root(p, q):
    return perfect_js_solved(p, q) ** 0.5


def perfect_js__one_side(p, q):
    return rel_entr(p, (p + q) / 2).sum()


def perfect_js__arguments_exchanged(p, q):
    middle = (p + q) / 2
    return (rel_entr(middle, p).sum() + rel_entr(middle, q).sum()) / 2


def perfect_js__zero_times_log_zero(p, q):
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2


def perfect_js__total_variation(p, q):
    return math.log(2) * np.abs(p - q).sum() / 2
