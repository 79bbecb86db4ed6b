"""Wrong answers to the exercises of the chapter on TransNorm. The names are those of its notebook."""

# ruff: noqa: F821


def head_on_f__rate_kept(weight, lr, decay):
    return 2 * weight, lr, decay


def head_on_f__rate_doubled(weight, lr, decay):
    return 2 * weight, 2 * lr, decay / 2


def head_on_f__decay_kept(weight, lr, decay):
    return 2 * weight, 4 * lr, decay


def head_on_f__halved(weight, lr, decay):
    return weight / 2, lr / 4, 4 * decay


def head_on_f__weight_kept(weight, lr, decay):
    return weight, 4 * lr, decay / 4


def forward(
    x_s,
    x_t,
    gamma,
    beta,
    eps=1e-5,
    *,
    variance_in_d=True,
    eps_in_d=True,
    distance=lambda a, b: (a - b).abs(),
    bump=lambda d: 1 / (1 + d),
    weight=lambda p: p / p.mean(),
    gain=lambda alpha: 1 + alpha,
    held=torch.Tensor.detach,
    pooled=False,
    of_shift=True,
    correction=0,
):
    z, ratio = [], []
    for x in (x_s, x_t):
        whole = torch.cat([x_s, x_t]) if pooled else x
        var, mean = torch.var_mean(whole, (0, 2, 3), correction=correction, keepdim=True)
        z.append((gamma * (x - mean) / (var + eps).sqrt(), beta))
        ratio.append(
            x.mean((0, 2, 3), keepdim=True) / (x.var((0, 2, 3), variance_in_d, keepdim=True) + eps_in_d * eps).sqrt()
        )
    factor = gain(held(weight(bump(distance(*ratio)))))
    return [factor * scaled + (factor * shift if of_shift else shift) for scaled, shift in z]


def transnorm__no_residual(*given):
    return forward(*given, gain=lambda alpha: alpha)


def transnorm__no_gain(*given):
    return forward(*given, gain=lambda alpha: 1)


def transnorm__uniform(*given):
    return forward(*given, gain=lambda alpha: 2)


def transnorm__halved(*given):
    return forward(*given, gain=lambda alpha: (1 + alpha) / 2)


def transnorm__gradient_through_alpha(*given):
    return forward(*given, held=lambda alpha: alpha)


def transnorm__biased_variance_in_d(*given):
    return forward(*given, variance_in_d=False)


def transnorm__unbiased_variance_everywhere(*given):
    return forward(*given, correction=1)


def transnorm__weights_sum_to_one(*given):
    return forward(*given, weight=lambda p: p / p.sum())


def transnorm__weights_not_scaled(*given):
    return forward(*given, weight=lambda p: p)


def transnorm__largest_weight_is_one(*given):
    return forward(*given, weight=lambda p: p / p.max())


def transnorm__distance_squared(*given):
    return forward(*given, distance=lambda a, b: (a - b) ** 2)


def transnorm__signed_distance(*given):
    return forward(*given, distance=lambda a, b: (a - b).clamp(min=0))


def transnorm__distance_is_the_weight(*given):
    return forward(*given, bump=lambda d: 1 + d)


def transnorm__softmax(*given):
    return forward(*given, bump=lambda d: torch.exp(-d))


def transnorm__pooled_statistics(*given):
    return forward(*given, pooled=True)


def transnorm__shift_without_gain(*given):
    return forward(*given, of_shift=False)


def transnorm__no_eps_in_d(*given):
    return forward(*given, eps_in_d=False)


def transnorm__default_eps(x_s, x_t, gamma, beta, eps=1e-5):
    return transnorm_solved(x_s, x_t, gamma, beta)


def transnorm__means_in_d(x_s, x_t, gamma, beta, eps=1e-5):
    d = (x_s.mean((0, 2, 3), keepdim=True) - x_t.mean((0, 2, 3), keepdim=True)).abs()
    return forward(x_s, x_t, gamma, beta, eps, distance=lambda a, b: d)


def transnorm__exchanged(*given):
    return transnorm_solved(*given)[::-1]


def absorbing(layer, gain, names=("weight", "bias"), statistics=()):
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    for name in names:
        state[name] *= gain
    for name in statistics:
        state[name] *= gain
    absorbed = DomainBatchNorm2d(layer.num_features, eps=layer.eps).double()
    absorbed.load_state_dict(state)
    return absorbed


def gain_of(layer):
    return layer.gain(layer.stored(0), layer.stored(1)).detach()


def absorb__shift_forgotten(layer):
    return absorbing(layer, gain_of(layer), ["weight"])


def absorb__alpha_alone(layer):
    return absorbing(layer, gain_of(layer) - 1)


def absorb__statistics_too(layer):
    return absorbing(layer, gain_of(layer), statistics=["running_var"])


def absorb__doubled(layer):
    return absorbing(layer, 2.0)


def absorb__nothing(layer):
    return absorbing(layer, 1.0)


def absorb__without_eps_in_d(layer):
    mean, spread = layer.running_mean, layer.running_var.sqrt()
    p = 1 / (1 + (mean[0] / spread[0] - mean[1] / spread[1]).abs())
    return absorbing(layer, 1 + p / p.mean())


def absorb__default_eps(layer):
    absorbed = DomainBatchNorm2d(layer.num_features).double()
    absorbed.load_state_dict(absorb_solved(layer).state_dict())
    return absorbed


def absorb__given_layer_changed(layer):
    with torch.no_grad():
        gain = gain_of(layer)
        layer.weight *= gain
        layer.bias *= gain
    return absorbing(layer, 1.0)


def absorb__a_transnorm(layer):
    return copy.deepcopy(layer)


def same_d__stretched(x):
    return 2 * x


def same_d__itself(x):
    return x


def same_d__shuffled(x):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def same_d__mirrored(x):
    return -x


def same_d__two_values_about_zero(x):
    return (torch.arange(len(x))[:, None] % 2).to(x)


def same_d__mirrored_about_the_mean(x):
    return 2 * x.mean() - x


def same_d__half_as_many(x):
    return same_d_solved(x)[::2]
