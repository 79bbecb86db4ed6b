"""Wrong answers to the exercises of the chapter on transferability. The names are those of its notebook."""

# ruff: noqa: F821

from deeptransfer.networks import small_cnn as new_network

base_a = new_network(5, widths=(8, 16, 32), hidden=(64,), seed=0).double().eval()  # for the trained one
x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()


def hold__no_gradient_alone(block):
    block.requires_grad_(False)


def hold__evaluation_until_train(block):
    block.requires_grad_(False)
    block.eval()


def hold__statistics_alone(block):
    block.eval()
    block.train = lambda mode=True: block


def hold__momentum_zero(block):
    block.requires_grad_(False)
    block[1].momentum = 0.0


def hold__statistics_not_tracked(block):
    block.requires_grad_(False)
    block[1].track_running_stats = False


def hold__nothing(block):
    pass


def spreads__differences_of_the_deviations(first, second):
    independent = abs(first.std(ddof=1) - second.std(ddof=1))
    return independent, (first - second).std(ddof=1)


def spreads__deviations_added(first, second):
    return first.std(ddof=1) + second.std(ddof=1), (first - second).std(ddof=1)


def spreads__biased(first, second):
    return np.hypot(first.std(), second.std()), (first - second).std()


def spreads__exchanged(first, second):
    return spreads_solved(first, second)[::-1]


def spreads__variances(first, second):
    return tuple(value**2 for value in spreads_solved(first, second))


def spreads__all_values_together(first, second):
    return np.concatenate([first, second]).std(ddof=1), (first - second).std(ddof=1)


def spreads__standard_errors(first, second):
    return tuple(value / len(first) ** 0.5 for value in spreads_solved(first, second))


def moved_means(network, images):
    convolution, norm = network.features.block1[:2]
    with torch.no_grad():
        return convolution(network.standardize(images)).mean((0, 2, 3)) - norm.running_mean, norm


def shift_in_sd__signs_cancel(network, images):
    off, norm = moved_means(network, images)
    return (off / norm.running_var.sqrt()).mean().abs()


def shift_in_sd__in_units_of_the_variance(network, images):
    off, norm = moved_means(network, images)
    return (off.abs() / norm.running_var).mean()


def shift_in_sd__in_units_of_the_images(network, images):
    off, _ = moved_means(network, images)
    return off.abs().mean()


def shift_in_sd__root_of_the_mean_square(network, images):
    off, norm = moved_means(network, images)
    return (off.square() / norm.running_var).mean().sqrt()


def shift_in_sd__raw_images(network, images):
    convolution, norm = network.features.block1[:2]
    off = convolution(images).mean((0, 2, 3)) - norm.running_mean
    return (off.abs() / norm.running_var.sqrt()).mean()


def shift_in_sd__largest(network, images):
    off, norm = moved_means(network, images)
    return (off.abs() / norm.running_var.sqrt()).max()


def shift_in_sd__norm_of_the_vector(network, images):
    off, norm = moved_means(network, images)
    return (off / norm.running_var.sqrt()).norm()


def shift_in_sd__behind_the_norm(network, images):
    return network.features.block1[:2](network.standardize(images)).mean((0, 2, 3)).mean()
