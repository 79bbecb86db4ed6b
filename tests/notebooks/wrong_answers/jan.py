"""Wrong answers to the exercises of the chapter on JAN. The names are those of its notebook."""

# ruff: noqa: E731, F821


def side_by_side__divided_by_the_variance(layers, sigma2s):
    return torch.cat([z / v for z, v in zip(layers, sigma2s, strict=True)], 1)


def side_by_side__not_scaled(layers, sigma2s):
    return torch.cat(layers, 1)


def side_by_side__multiplied(layers, sigma2s):
    return torch.cat([z * v**0.5 for z, v in zip(layers, sigma2s, strict=True)], 1)


def side_by_side__scaled_twice(layers, sigma2s):
    return torch.cat([z / (2 * v) ** 0.5 for z, v in zip(layers, sigma2s, strict=True)], 1)


def blocks(k, n):
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def matrices(source, target, kernels):
    return [kernel(torch.cat(both)) for *both, kernel in zip(source, target, kernels, strict=True)]


def joint_mmd2__sum_of_layers(source, target, kernels):
    return sum(blocks(k, len(source[0])) for k in matrices(source, target, kernels))


def joint_mmd2__mean_of_kernels(source, target, kernels):
    return blocks(torch.stack(matrices(source, target, kernels)).mean(0), len(source[0]))


def joint_mmd2__matrix_product(source, target, kernels):
    first, *rest = matrices(source, target, kernels)
    for k in rest:
        first = first @ k
    return blocks(first, len(source[0]))


def joint_mmd2__product_of_discrepancies(source, target, kernels):
    value = 1
    for k in matrices(source, target, kernels):
        value = value * blocks(k, len(source[0]))
    return value


def joint_mmd2__first_two_layers(source, target, kernels):
    return joint_mmd2_solved(source[:2], target[:2], kernels[:2])


def joint_mmd2__halves_of_equal_size(source, target, kernels):
    k = torch.stack(matrices(source, target, kernels)).prod(0)
    return blocks(k, len(k) // 2)


def joint_mmd2__cross_term_once(source, target, kernels):
    n, k = len(source[0]), torch.stack(matrices(source, target, kernels)).prod(0)
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean()


def joint_mmd2__one_kernel_on_all_layers(source, target, kernels):
    return blocks(kernels[0](torch.cat([torch.cat(source, 1), torch.cat(target, 1)])), len(source[0]))


def joint_mmd2__widths_of_each_domain(source, target, kernels):
    within = 0
    for layers in (source, target):
        within += torch.stack([k(z) for z, k in zip(layers, kernels, strict=True)]).prod(0).mean()
    n, k = len(source[0]), torch.stack(matrices(source, target, kernels)).prod(0)
    return within - 2 * k[:n, n:].mean()


def joint_mmd2__without_gradient(source, target, kernels):
    return joint_mmd2_solved(source, target, kernels).detach()


def joint_mmd2__second_layer_detached(source, target, kernels):
    held = lambda layers: [*layers[:1], *(z.detach() + 0 * z for z in layers[1:])]
    return joint_mmd2_solved(held(source), held(target), kernels)


def of_classes(f_s, y_s, f_t, y_t, estimator="biased"):
    return torch.stack([mmd2(f_s[y_s == k], f_t[y_t == k], 1.0, estimator=estimator) for k in y_s.unique()])


def mmd_by_class__sum(f_s, y_s, f_t, y_t):
    return of_classes(f_s, y_s, f_t, y_t).sum()


def mmd_by_class__weighted_by_the_target(f_s, y_s, f_t, y_t):
    return y_t.bincount().double() / len(y_t) @ of_classes(f_s, y_s, f_t, y_t)


def mmd_by_class__weighted_by_the_source(f_s, y_s, f_t, y_t):
    return y_s.bincount().double() / len(y_s) @ of_classes(f_s, y_s, f_t, y_t)


def mmd_by_class__weighted_by_both(f_s, y_s, f_t, y_t):
    labels = torch.cat([y_s, y_t])
    return labels.bincount().double() / len(labels) @ of_classes(f_s, y_s, f_t, y_t)


def mmd_by_class__largest(f_s, y_s, f_t, y_t):
    return of_classes(f_s, y_s, f_t, y_t).max()


def mmd_by_class__no_classes(f_s, y_s, f_t, y_t):
    return mmd2(f_s, f_t, 1.0)


def mmd_by_class__default_bandwidth(f_s, y_s, f_t, y_t):
    return torch.stack([mmd2(f_s[y_s == k], f_t[y_t == k]) for k in y_s.unique()]).mean()


def mmd_by_class__first_class(f_s, y_s, f_t, y_t):
    return of_classes(f_s, y_s, f_t, y_t)[0]


def mmd_by_class__distance_of_class_means(f_s, y_s, f_t, y_t):
    pairs = [(f_s[y_s == k].mean(0), f_t[y_t == k].mean(0)) for k in y_s.unique()]
    return torch.stack([(a - b).square().sum() for a, b in pairs]).mean()


def halves(layers, n):
    return JointMMD()([z[:n] for z in layers], [z[n:] for z in layers])


def jmmd_detached__softmax_through_frozen_weights(network, xs, xt):
    f = network(torch.cat([xs, xt])).features
    head = network.classifier
    return halves((f, (f @ head.weight.detach().T + head.bias.detach()).softmax(1)), len(xs))


def jmmd_detached__not_detached(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    return halves((joint.features, joint.logits.softmax(1)), len(xs))


def jmmd_detached__features_detached(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    return halves((joint.features.detach(), joint.logits.softmax(1)), len(xs))


def jmmd_detached__target_alone_detached(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    f, g, n = joint.features, joint.logits.softmax(1), len(xs)
    return JointMMD()([f[:n], g[:n]], [f[n:], g[n:].detach()])


def jmmd_detached__logits(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    return halves((joint.features, joint.logits.detach()), len(xs))


def jmmd_detached__source_features_detached_too(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    f, g, n = joint.features, joint.logits.detach().softmax(1), len(xs)
    return JointMMD()([f[:n].detach(), g[:n]], [f[n:], g[n:]])


def jmmd_detached__two_passes(network, xs, xt):
    source, target = network(xs), network(xt)
    layers = [[out.features, out.logits.detach().softmax(1)] for out in (source, target)]
    return JointMMD()(*layers)


def jmmd_detached__domains_weighed_by_a_class(network, xs, xt):
    joint = network(torch.cat([xs, xt]))
    return halves((joint.features, F.one_hot(joint.logits.argmax(1), 10).double()), len(xs))
