"""Wrong answers to the exercises of the chapter on style. The names are those of its notebook."""

# ruff: noqa: E731, F821


def with_roots(content, style, eps, white, color, correction=0, mean_of=1):
    centred, sigmas = [], []
    for x in (content, style):
        centred.append(x - x.mean(1, keepdim=True))
        ridge = eps * torch.eye(len(x), dtype=x.dtype)
        sigmas.append(centred[-1] @ centred[-1].T / (x.shape[1] - correction) + ridge)
    return color(sigmas[1]) @ white(sigmas[0]) @ centred[0] + mean_of * style.mean(1, keepdim=True)


def root(power):
    return lambda a: matrix_power_psd(a, power)


def transfer__each_channel_alone(content, style, eps):
    return adaptive_instance_norm(content[None], style[None], eps=eps)[0]


def transfer__no_mean(content, style, eps):
    return with_roots(content, style, eps, root(-0.5), root(0.5), mean_of=0)


def transfer__unbiased(content, style, eps):
    return with_roots(content, style, eps, root(-0.5), root(0.5), correction=1)


def transfer__cholesky(content, style, eps):
    return with_roots(
        content, style, eps, lambda a: torch.linalg.inv(torch.linalg.cholesky(a)), torch.linalg.cholesky
    )


def transfer__white_along_principal_axes(content, style, eps):
    def white(a):
        values, vectors = torch.linalg.eigh(a)
        return (vectors / values.sqrt()).T

    return with_roots(content, style, eps, white, root(0.5))


def transfer__covariance_in_place_of_its_root(content, style, eps):
    return with_roots(content, style, eps, root(-1.0), root(1.0))


def transfer__ridge_on_the_content_alone(content, style, eps):
    ridge = eps * torch.eye(len(style), dtype=style.dtype)
    return with_roots(content, style, eps, root(-0.5), lambda a: matrix_power_psd(a - ridge, 0.5))


def transfer__style_is_a_constant(content, style, eps):
    return with_roots(content, style.detach(), eps, root(-0.5), root(0.5)) + 0 * style.sum()


def blended(content, styles, weights, scale_of, shift_of):
    scale = scale_of([s.var((0, 2, 3), correction=0) + 1e-5 for s in styles], weights)
    shift = shift_of([s.mean((0, 2, 3)) for s in styles], weights)
    return F.instance_norm(content, weight=scale, bias=shift)


def mean_with(values, weights):
    return sum(w * v for w, v in zip(weights, values)) / sum(weights)


def blend__variances(content, styles, weights):
    scale = lambda values, w: mean_with(values, w).sqrt()
    return blended(content, styles, weights, scale, mean_with)


def blend__weights_not_scaled(content, styles, weights):
    scale = lambda values, w: sum(a * v.sqrt() for a, v in zip(w, values))
    shift = lambda values, w: sum(a * v for a, v in zip(w, values))
    return blended(content, styles, weights, scale, shift)


def blend__one_style_of_all_pixels(content, styles, weights):
    pixels = torch.cat([s.flatten(2) for s in styles], 2)
    return adaptive_instance_norm(content, pixels)


def blend__in_the_place_of_content(content, styles, weights):
    blend = mean_with(styles, weights)
    return adaptive_instance_norm(content, blend)


def least_move__wct(sigma_c, sigma_s):
    return matrix_power_psd(sigma_s, 0.5) @ matrix_power_psd(sigma_c, -0.5)


def least_move__the_other_way(sigma_c, sigma_s):
    return least_move_solved(sigma_s, sigma_c)


def least_move__inner_root_forgotten(sigma_c, sigma_s):
    r, inverse = matrix_power_psd(sigma_c, 0.5), matrix_power_psd(sigma_c, -0.5)
    return inverse @ (r @ sigma_s @ r) @ inverse


def least_move__symmetric_part_of_wct(sigma_c, sigma_s):
    product = matrix_power_psd(sigma_s, 0.5) @ matrix_power_psd(sigma_c, -0.5)
    return (product + product.T) / 2


def least_move__minus(sigma_c, sigma_s):
    return -least_move_solved(sigma_c, sigma_s)
