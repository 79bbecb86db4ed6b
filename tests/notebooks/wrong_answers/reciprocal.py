"""Wrong answers to the exercises of the chapter on reciprocal normalisation. The names are those of its notebook."""

# ruff: noqa: E731, F821


def with_state(layer, change):
    mirror = copy.deepcopy(layer)
    mirror.load_state_dict({name: change(name, value) for name, value in layer.state_dict().items()})
    return mirror


def counterpart(layer, name):
    ends = {"source": "target", "target": "source"}
    stem, _, end = name.rpartition("_")
    return layer.state_dict()[f"{stem}_{ends[end]}"]


def swapped__nothing(layer):
    return copy.deepcopy(layer)


def swapped__gates_alone(layer):
    return with_state(layer, lambda name, v: counterpart(layer, name) if name.startswith("gate") else v)


def swapped__statistics_alone(layer):
    return with_state(layer, lambda name, v: v.flip(0) if name.startswith("running") else v)


def swapped__gates_of_the_means_alone(layer):
    def change(name, value):
        if name.startswith("gate_mean"):
            return counterpart(layer, name)
        return value.flip(0) if name.startswith("running") else value

    return with_state(layer, change)


def swapped__means_alone(layer):
    def change(name, value):
        if name.startswith("gate"):
            return counterpart(layer, name)
        return value.flip(0) if name == "running_mean" else value

    return with_state(layer, change)


def swapped__scale_and_shift_too(layer):
    mirror = swapped_solved(layer)
    with torch.no_grad():
        mirror.weight.copy_(layer.bias)
        mirror.bias.copy_(layer.weight)
    return mirror


def swapped__another_temperature(layer):
    mirror = ReciprocalNorm2d(5).double()
    mirror.load_state_dict(swapped_solved(layer).state_dict())
    return mirror


def attend(
    own,
    other,
    gate,
    temperature,
    groups,
    *,
    blocks=lambda v, groups: v.view(groups, -1),
    flat=lambda m: m.flatten(),
    distance=lambda a, b: (a[:, None] - b) ** 2,
    exponent=lambda d, T: -d / T,
    dim=1,
    values=None,
    mixed=lambda gate, own, taken: gate * own + (1 - gate) * taken,
):
    m, m_other = blocks(own, groups).mean(1), blocks(other, groups).mean(1)
    A = torch.softmax(exponent(distance(m, m_other), temperature), dim=dim)
    return mixed(gate, own, flat(A @ blocks(other if values is None else values, groups)))


def aggregated__over_the_own_blocks(*given):
    return attend(*given, dim=0)


def aggregated__distance_not_squared(*given):
    return attend(*given, distance=lambda a, b: (a[:, None] - b).abs())


def aggregated__farthest_first(*given):
    return attend(*given, exponent=lambda d, T: d / T)


def aggregated__times_the_temperature(*given):
    return attend(*given, exponent=lambda d, T: -d * T)


def aggregated__bandwidth_doubled(*given):
    return attend(*given, exponent=lambda d, T: -d / (2 * T))


def aggregated__no_temperature(*given):
    return attend(*given, exponent=lambda d, T: -d)


def aggregated__blocks_interleaved(*given):
    blocks = lambda v, groups: v.view(-1, groups).T
    return attend(*given, blocks=blocks, flat=lambda m: m.T.flatten())


def aggregated__channels_without_blocks(own, other, gate, temperature, groups):
    return attend(own, other, gate, temperature, len(own))


def aggregated__means_of_blocks_for_values(own, other, gate, temperature, groups):
    means_of = other.view(groups, -1).mean(1, keepdim=True).expand(groups, len(other) // groups)
    return attend(own, other, gate, temperature, groups, values=means_of.reshape(-1))


def aggregated__own_values(own, other, gate, temperature, groups):
    return attend(own, other, gate, temperature, groups, values=own)


def aggregated__gate_turned_over(*given):
    return attend(*given, mixed=lambda gate, own, taken: (1 - gate) * own + gate * taken)


def aggregated__no_gate(*given):
    return attend(*given, mixed=lambda gate, own, taken: taken + 0 * gate)


def aggregated__not_compensated(*given):
    return attend(*given, mixed=lambda gate, own, taken: own + 0 * gate)


def aggregated__gate_detached(*given):
    return attend(*given, mixed=lambda gate, own, taken: attend(*given).detach() + 0 * gate)


def aggregated__nearest_alone(own, other, gate, temperature, groups):
    return attend(own, other, gate, 1e-9, groups)


def tied(own, other, temperature, tau=1.0, dim=1, floor=1e-300):
    d = (own[:, None] - other) ** 2
    return torch.softmax(-d / (tau * temperature(d)).clamp(min=floor), dim=dim)


def tied_attention__mean_of_each_row(own, other, tau=1.0):
    return tied(own, other, lambda d: d.mean(1, keepdim=True), tau)


def tied_attention__largest(own, other, tau=1.0):
    return tied(own, other, torch.max, tau)


def tied_attention__median(own, other, tau=1.0):
    return tied(own, other, torch.median, tau)


def tied_attention__without_tau(own, other, tau=1.0):
    return tied(own, other, torch.mean)


def tied_attention__tau_turned_over(own, other, tau=1.0):
    return tied(own, other, torch.mean, 1 / tau)


def tied_attention__over_the_own_channels(own, other, tau=1.0):
    return tied(own, other, torch.mean, tau, dim=0)


def tied_attention__no_floor(own, other, tau=1.0):
    return tied(own, other, torch.mean, tau, floor=0.0)


def tied_attention__high_floor(own, other, tau=1.0):
    return tied(own, other, torch.mean, tau, floor=1.0)


def tied_attention__not_tied(own, other, tau=1.0):
    return attention(own, other, tau)


def tied_attention__variance_of_the_statistics(own, other, tau=1.0):
    return tied(own, other, lambda d: torch.cat([own, other]).var(), tau)


def tied_attention__root_of_the_mean(own, other, tau=1.0):
    return tied(own, other, lambda d: d.mean().sqrt(), tau)


def steps_until(rates, needed):
    return int((np.cumsum(rates) < needed).sum()) + 1


def steps_to_half__momentum_forgotten(rates, decay, momentum):
    return steps_until(rates, np.log(2) / decay)


def steps_to_half__half_for_its_logarithm(rates, decay, momentum):
    return steps_until(rates, 0.5 * (1 - momentum) / decay)


def steps_to_half__times_the_momentum(rates, decay, momentum):
    return steps_until(rates, momentum * np.log(2) / decay)


def steps_to_half__constant_rate(rates, decay, momentum):
    return int((1 - momentum) * np.log(2) / decay / rates[0])


def steps_to_half__base_two(rates, decay, momentum):
    return steps_until(rates, (1 - momentum) * np.log2(2) / decay)


def steps_to_half__rate_at_the_end(rates, decay, momentum):
    return int((1 - momentum) * np.log(2) / decay / rates[-1])
