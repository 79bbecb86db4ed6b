"""Wrong answers to the exercises of the chapter on cheaper networks. The names are those of its notebook."""

# ruff: noqa: F821


def fold__without_the_activation(mean, weight, beta, keep):
    return mean - weight.sum((2, 3)) @ (beta * ~keep)


def fold__with_the_other_sign(mean, weight, beta, keep):
    return mean + weight.sum((2, 3)) @ (beta.relu() * ~keep)


def fold__mean_of_the_kernel(mean, weight, beta, keep):
    return mean - weight.mean((2, 3)) @ (beta.relu() * ~keep)


def fold__channels_that_stay(mean, weight, beta, keep):
    return mean - weight.sum((2, 3)) @ (beta.relu() * keep)


def fold__all_channels(mean, weight, beta, keep):
    return mean - weight.sum((2, 3)) @ beta.relu()


def fold__changes_nothing(mean, weight, beta, keep):
    return mean


def cut_weight__whole_mask_repeated(weight, inputs, outputs):
    return weight[outputs][:, inputs.repeat(weight.shape[1] // len(inputs))]


def cut_weight__inputs_only(weight, inputs, outputs):
    return weight[:, inputs.repeat_interleave(weight.shape[1] // len(inputs))]


def cut_weight__set_to_zero(weight, inputs, outputs):
    weight = weight.clone()
    weight[~outputs] = 0
    weight[:, ~inputs.repeat_interleave(weight.shape[1] // len(inputs))] = 0
    return weight


def released_mask__not_strictly(scales, share):
    size = scales.abs()
    return size >= size.sort().values[int(len(size) * share)]


def released_mask__with_signs(scales, share):
    return scales > scales.sort().values[int(len(scales) * share)]


def released_mask__the_share_that_was_asked_for(scales, share):
    size, mask = scales.abs(), torch.ones(len(scales), dtype=torch.bool)
    mask[size.argsort()[: int(len(size) * share)]] = False
    return mask


def released_mask__those_that_go(scales, share):
    size = scales.abs()
    return size <= size.sort().values[int(len(size) * share)]
