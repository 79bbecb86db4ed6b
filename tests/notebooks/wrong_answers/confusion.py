"""Wrong answers to the exercises of the chapter on domain confusion. The names are those of its notebook."""

# ruff: noqa: E731, F821


def slopes_of_target__of_a_source_image(z):
    return 1 - sigmoid(z), sigmoid(z) - 0.5


def slopes_of_target__of_plus_l_d(z):
    return sigmoid(z), sigmoid(z) - 0.5


def slopes_of_target__confusion_turned_round(z):
    return -sigmoid(z), 0.5 - sigmoid(z)


def slopes_of_target__confusion_twice(z):
    return -sigmoid(z), 2 * sigmoid(z) - 1


def slopes_of_target__for_one_number(z):
    return -sigmoid(z[0]), sigmoid(z[0]) - 0.5


def confusion_losses__nothing_held_fixed(discriminator, f_s, f_t):
    z_s, z_t = discriminator(f_s), discriminator(f_t)
    bracket = lambda z: ((F.softplus(-z) + F.softplus(z)) / 2).mean()
    return (F.softplus(-z_s).mean() + F.softplus(z_t).mean()) / 2, (bracket(z_s) + bracket(z_t)) / 2


def confusion_losses__features_move_l_d(discriminator, f_s, f_t):
    z_s, z_t = discriminator(f_s), discriminator(f_t)
    l_d = (F.softplus(-z_s).mean() + F.softplus(z_t).mean()) / 2
    return l_d, confusion_losses_solved(discriminator, f_s, f_t)[1]


def confusion_losses__discriminator_moves_l_conf(discriminator, f_s, f_t):
    l_d, _ = confusion_losses_solved(discriminator, f_s, f_t)
    return l_d, confusion_losses__nothing_held_fixed(discriminator, f_s, f_t)[1]


def confusion_losses__features_of_l_conf_detached(discriminator, f_s, f_t):
    return confusion_losses__nothing_held_fixed(discriminator, f_s.detach(), f_t.detach())


def confusion_losses__mean_over_all_rows(discriminator, f_s, f_t):
    z_s, z_t = discriminator(f_s.detach()), discriminator(f_t.detach())
    fixed = copy.deepcopy(discriminator).requires_grad_(False)
    z = fixed(torch.cat([f_s, f_t]))
    return torch.cat([F.softplus(-z_s), F.softplus(z_t)]).mean(), ((F.softplus(-z) + F.softplus(z)) / 2).mean()


def confusion_losses__labels_exchanged(discriminator, f_s, f_t):
    z_s, z_t = discriminator(f_s.detach()), discriminator(f_t.detach())
    l_d = (F.softplus(z_s).mean() + F.softplus(-z_t).mean()) / 2
    return l_d, confusion_losses_solved(discriminator, f_s, f_t)[1]


def confusion_losses__minus_l_d(discriminator, f_s, f_t):
    fixed = copy.deepcopy(discriminator).requires_grad_(False)
    l_d = confusion_losses_solved(discriminator, f_s, f_t)[0]
    return l_d, -(F.softplus(-fixed(f_s)).mean() + F.softplus(fixed(f_t)).mean()) / 2


def confusion_losses__inverted_labels(discriminator, f_s, f_t):
    fixed = copy.deepcopy(discriminator).requires_grad_(False)
    l_d = confusion_losses_solved(discriminator, f_s, f_t)[0]
    return l_d, (F.softplus(fixed(f_s)).mean() + F.softplus(-fixed(f_t)).mean()) / 2


def confusion_losses__bracket_not_halved(discriminator, f_s, f_t):
    l_d, l_conf = confusion_losses_solved(discriminator, f_s, f_t)
    return l_d, 2 * l_conf


def confusion_losses__domains_added(discriminator, f_s, f_t):
    l_d, l_conf = confusion_losses_solved(discriminator, f_s, f_t)
    return 2 * l_d, l_conf


def confusion_losses__logarithm_of_a_probability(discriminator, f_s, f_t):
    q_s, q_t = discriminator(f_s.detach()).sigmoid(), discriminator(f_t.detach()).sigmoid()
    l_d = -(q_s.log().mean() + (1 - q_t).log().mean()) / 2
    fixed = copy.deepcopy(discriminator).requires_grad_(False)
    q_s, q_t = fixed(f_s).sigmoid(), fixed(f_t).sigmoid()
    bracket = lambda q: ((q.log() + (1 - q).log()) / 2).mean()
    return l_d, -(bracket(q_s) + bracket(q_t)) / 2


def confusion_losses__discriminator_left_frozen(discriminator, f_s, f_t):
    z_s, z_t = discriminator(f_s.detach()), discriminator(f_t.detach())
    l_d = (F.softplus(-z_s).mean() + F.softplus(z_t).mean()) / 2
    discriminator.requires_grad_(False)
    bracket = lambda z: ((F.softplus(-z) + F.softplus(z)) / 2).mean()
    return l_d, (bracket(discriminator(f_s)) + bracket(discriminator(f_t))) / 2


def confusion_losses__exchanged(discriminator, f_s, f_t):
    return confusion_losses_solved(discriminator, f_s, f_t)[::-1]


def entropy_slope__of_plus_h(z):
    return -entropy_slope_solved(z)


def entropy_slope__confusion(z):
    return z.sigmoid() - 0.5


def entropy_slope__without_z(z):
    return z.sigmoid() * (-z).sigmoid()


def entropy_slope__logarithm_of_a_probability(z):
    q = z.sigmoid()
    return (q.log() - (1 - q).log()) * q * (1 - q)


def entropy_slope__in_q(z):
    return z.clamp(-50, 50)


def confusion_of__sum_over_domains(logits):
    return -logits.log_softmax(1).sum(1).mean()


def confusion_of__logarithm_of_a_probability(logits):
    return -logits.softmax(1).log().mean()


def confusion_of__entropy(logits):
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def confusion_of__over_rows(logits):
    return -logits.log_softmax(0).mean()


def confusion_of__without_normaliser(logits):
    return -logits.mean()


def confusion_of__two_domains(logits):
    return -logits.log_softmax(1).sum(1).mean() / 2
