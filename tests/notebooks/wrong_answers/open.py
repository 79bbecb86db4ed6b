"""Wrong answers to the exercises on open questions. The names are those of its notebook."""

# ruff: noqa: F821

import copy


def changed_tokens(tokens, k):
    other = tokens.clone()
    other[:, k:] = (other[:, k:] + 1) % 8
    return other


def compare(model, tokens, k):
    with torch.no_grad():
        return (model(tokens) - model(changed_tokens(tokens, k)))[:, :k].abs().max()


def future_leak__moves_the_statistics(model, tokens, k):
    return compare(model, tokens, k)


def future_leak__in_evaluation(model, tokens, k):
    return compare(copy.deepcopy(model).eval(), tokens, k)


def future_leak__leaves_the_mode_changed(model, tokens, k):
    found = compare(copy.deepcopy(model), tokens, k)
    model.eval()
    return found


def future_leak__all_positions(model, tokens, k):
    model = copy.deepcopy(model)
    with torch.no_grad():
        return (model(tokens) - model(changed_tokens(tokens, k))).abs().max()


def future_leak__position_k_too(model, tokens, k):
    model = copy.deepcopy(model)
    with torch.no_grad():
        return (model(tokens) - model(changed_tokens(tokens, k)))[:, : k + 1].abs().max()


def future_leak__last_token_only(model, tokens, k):
    model, other = copy.deepcopy(model), tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 8
    with torch.no_grad():
        return (model(tokens) - model(other))[:, :k].abs().max()


def future_leak__mean_change(model, tokens, k):
    model = copy.deepcopy(model)
    with torch.no_grad():
        return (model(tokens) - model(changed_tokens(tokens, k)))[:, :k].abs().mean()


def without_mean__subtracts_it(x, kind, alpha=0.5, eps=1e-6):
    if kind == "dyt":
        return torch.tanh(alpha * x)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)


def without_mean__eps_outside_the_root(x, kind, alpha=0.5, eps=1e-6):
    if kind == "dyt":
        return torch.tanh(alpha * x)
    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def without_mean__sum_of_squares(x, kind, alpha=0.5, eps=1e-6):
    if kind == "dyt":
        return torch.tanh(alpha * x)
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def without_mean__over_the_batch(x, kind, alpha=0.5, eps=1e-6):
    if kind == "dyt":
        return torch.tanh(alpha * x)
    return x / (x.square().mean(0, keepdim=True) + eps).sqrt()


def without_mean__alpha_outside(x, kind, alpha=0.5, eps=1e-6):
    if kind == "dyt":
        return alpha * torch.tanh(x)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
