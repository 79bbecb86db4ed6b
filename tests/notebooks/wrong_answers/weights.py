"""Wrong answers to the exercises of the chapter on normalised weights. The names are those of its notebook."""

# ruff: noqa: F821


def direction(weight, size, padding, iterations, back):
    """The image and the output to which a power iteration leads whose way back is ``back``."""
    x = drawn(1, weight.shape[1], size, size)
    with torch.no_grad():
        for _ in range(iterations):
            y = F.conv2d(x / x.norm(), weight, padding=padding)
            x = back(y / y.norm())
        x = x / x.norm()
        y = F.conv2d(x, weight, padding=padding)
    return x, y / y.norm()


def normalised_kernel__by_the_norm_of_its_matrix(weight, size, padding, iterations):
    return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def normalised_kernel__by_the_bound(weight, size, padding, iterations):
    return weight / (weight.shape[-1] * torch.linalg.matrix_norm(weight.flatten(1), 2))


def normalised_kernel__constant_norm(weight, size, padding, iterations):
    x, y = direction(weight, size, padding, iterations, lambda y: F.conv_transpose2d(y, weight, padding=padding))
    return weight / (y * F.conv2d(x, weight, padding=padding)).sum().detach()


def normalised_kernel__no_gradient(weight, size, padding, iterations):
    return normalised_kernel_solved(weight, size, padding, iterations).detach()


def normalised_kernel__kernel_not_turned_on_the_way_back(weight, size, padding, iterations):
    def back(y):
        return F.conv2d(y, weight.transpose(0, 1), padding=weight.shape[-1] - 1 - padding)

    x, y = direction(weight, size, padding, iterations, back)
    return weight / (y * F.conv2d(x, weight, padding=padding)).sum()


def normalised_kernel__squared_norm(weight, size, padding, iterations):
    x, y = direction(weight, size, padding, iterations, lambda y: F.conv_transpose2d(y, weight, padding=padding))
    return weight / (y * F.conv2d(x, weight, padding=padding)).sum() ** 2


def normalised_kernel__one_iteration(weight, size, padding, iterations):
    return normalised_kernel_solved(weight, size, padding, 1)


def from_values(Z, T, first):
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    s = first(s)
    for _ in range(T):
        s = s * (3 - s**2) / 2
    return U @ (s[:, None] * Vh)


def dialled__starts_at_the_largest(Z, T):
    return from_values(Z, T, lambda s: s / s.max())


def dialled__starts_at_the_frobenius_norm(Z, T):
    return from_values(Z, T, lambda s: s / s.norm())


def dialled__forgets_the_root(Z, T):
    return from_values(Z, T, lambda s: s / s.pow(4).sum().sqrt())


def dialled__one_iteration_more(Z, T):
    return dialled_solved(Z, T + 1)


def dialled__centred(Z, T):
    return dialled_solved(Z - Z.mean(1, keepdim=True), T)


def dialled__orthogonal_at_once(Z, T):
    return from_values(Z, 40, lambda s: s / s.max())
