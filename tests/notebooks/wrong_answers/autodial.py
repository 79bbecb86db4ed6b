"""Wrong answers to the exercises of the chapter on AutoDIAL. The names are those of its notebook."""

# ruff: noqa: F821


def correction__of_the_own_rows(alpha, n_own, n_other):
    return n_own / (n_own - 1)


def correction__of_the_pooled_rows(alpha, n_own, n_other):
    return (n_own + n_other) / (n_own + n_other - 1)


def correction__mixture_of_the_two(alpha, n_own, n_other):
    return alpha * n_own / (n_own - 1) + (1 - alpha) * n_other / (n_other - 1)


def correction__weights_not_squared(alpha, n_own, n_other):
    return 1 / (1 - alpha / n_own - (1 - alpha) / n_other)


def correction__domains_exchanged(alpha, n_own, n_other):
    return 1 / (1 - (1 - alpha) ** 2 / n_own - alpha**2 / n_other)


def correction__turned_over(alpha, n_own, n_other):
    return 1 / correction_solved(alpha, n_own, n_other)


class Mixing(DomainNorm):
    """What the wrong layers share: each says what its mean, its variance and its gate are."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.alpha = nn.Parameter(torch.ones(()))

    clip = staticmethod(clip_gate)

    def share(self, alpha, target):
        return alpha

    def between(self, alpha, apart):
        return alpha * (1 - alpha) * apart**2

    def mixture(self, own, other, alpha):
        mean = alpha * own.mean + (1 - alpha) * other.mean
        within = alpha * own.var + (1 - alpha) * other.var
        return own._replace(mean=mean, var=within + self.between(alpha, own.mean - other.mean))

    def mix(self, source, target):
        alpha = self.clip(self.alpha)
        of_source, of_target = self.share(alpha, False), self.share(alpha, True)
        return self.mixture(source, target, of_source), self.mixture(target, source, of_target)


class GatedNorm__nothing_between(Mixing):
    def between(self, alpha, apart):
        return 0


class GatedNorm__between_without_the_gate(Mixing):
    def between(self, alpha, apart):
        return apart**2


class GatedNorm__between_without_its_slope(Mixing):
    def between(self, alpha, apart):
        return super().between(alpha.detach(), apart)


class GatedNorm__between_not_squared(Mixing):
    def between(self, alpha, apart):
        return alpha * (1 - alpha) * apart.abs()


class GatedNorm__one_mixture_for_both(Mixing):
    def share(self, alpha, target):
        return 1 - alpha if target else alpha


class GatedNorm__shares_exchanged(Mixing):
    def share(self, alpha, target):
        return 1 - alpha


class GatedNorm__domains_exchanged(Mixing):
    def mix(self, source, target):
        return super().mix(source, target)[::-1]


class GatedNorm__not_mixed(Mixing):
    def mix(self, source, target):
        return source, target


class GatedNorm__half_and_half(Mixing):
    def share(self, alpha, target):
        return 0 * alpha + 0.5


class GatedNorm__standard_deviations_mixed(Mixing):
    def mixture(self, own, other, alpha):
        spread = alpha * own.var.sqrt() + (1 - alpha) * other.var.sqrt()
        return super().mixture(own, other, alpha)._replace(var=spread**2 + self.between(alpha, own.mean - other.mean))


class GatedNorm__spread_about_the_own_mean(Mixing):
    def mixture(self, own, other, alpha):
        var = alpha * own.var + (1 - alpha) * (other.var + (other.mean - own.mean) ** 2)
        return super().mixture(own, other, alpha)._replace(var=var)


class GatedNorm__not_clipped(Mixing):
    clip = staticmethod(lambda gate: gate)


class GatedNorm__plain_clamp(Mixing):
    clip = staticmethod(lambda gate: gate.clamp(0.5, 1.0))


class GatedNorm__gate_detached(Mixing):
    clip = staticmethod(lambda gate: clip_gate(gate).detach() + 0 * gate)


class GatedNorm__mean_not_mixed(Mixing):
    def mixture(self, own, other, alpha):
        return super().mixture(own, other, alpha)._replace(mean=own.mean)


class GatedNorm__variance_not_mixed(Mixing):
    def mixture(self, own, other, alpha):
        return super().mixture(own, other, alpha)._replace(var=own.var)


def write_back__between_0_and_1(network):
    for gate in gate_parameters(network):
        gate.data.clamp_(0.0, 1.0)
    return 0.0


def write_back__every_parameter(network):
    for parameter in network.parameters():
        parameter.data.clamp_(0.5, 1.0)
    return 0.0


def write_back__copies(network):
    [gate.data.clamp(0.5, 1.0) for gate in gate_parameters(network)]
    return 0.0


def write_back__returns_nothing(network):
    write_back_solved(network)


def write_back__below_alone(network):
    for gate in gate_parameters(network):
        gate.data.clamp_(max=1.0)
    return 0.0


def write_back__new_parameters(network):
    for module in network.modules():
        if hasattr(module, "alpha"):
            module.alpha = nn.Parameter(module.alpha.detach().clamp(0.5, 1.0))
    return 0.0
