"""Objectives: the value of every term, where its gradient goes, and that methods and normalisations combine."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from support_methods import WIDTH, tiny_network, tiny_pair
from torch import nn
from torch.nn import functional as F

from deeptransfer.adversarial import SoftLabelLoss, dann_lambda
from deeptransfer.discrepancy import JointMMD, MultiKernelMMD, linear_mmd2, mmd2
from deeptransfer.domains import Batch
from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    convert_norm,
    forward_domains,
    gate_parameters,
    min_entropy_consensus,
)
from deeptransfer.objectives import (
    ADDA,
    CDAN,
    DAN,
    DANN,
    DDC,
    JAN,
    MEC,
    Combined,
    DaNN,
    DomainConfusion,
    EntropyMinimization,
    Objective,
    PseudoLabels,
    SoftLabels,
    SourceOnly,
    constant,
)
from deeptransfer.training import fit

CLASSES = 3


def soft_label_loss():
    loss = SoftLabelLoss(CLASSES)
    logits = torch.randn(9, CLASSES, generator=torch.Generator().manual_seed(3))
    loss.update(logits, torch.arange(9) % CLASSES)
    return loss


METHODS = {
    "joint": Objective,
    "source": SourceOnly,
    "dann-mmd": lambda: DaNN(0.7),
    "ddc": lambda: DDC(0.7),
    "dan": lambda: DAN(0.7),
    "jan": lambda: JAN(0.7),
    "jan-a": lambda: JAN(0.7, adversarial=True, dims=(WIDTH, CLASSES)),
    "confusion": lambda: DomainConfusion(WIDTH, 0.7, hidden=16),
    "soft labels": lambda: SoftLabels(soft_label_loss(), 0.7),
    "dann": lambda: DANN(WIDTH, 0.7, hidden=16),
    "adda": lambda: ADDA(tiny_network(1), WIDTH, 0.7, hidden=16),
    "cdan": lambda: CDAN(WIDTH, CLASSES, 0.7, hidden=16),
    "cdan+e": lambda: CDAN(WIDTH, CLASSES, 0.7, weighting="per-domain", hidden=16),
    "entropy": lambda: EntropyMinimization(0.7),
    "pseudo-labels": lambda: PseudoLabels(0.7, threshold=0.3),
    "mec": lambda: MEC(0.7),
    "combined": lambda: Combined(DAN(0.7), EntropyMinimization(0.3), DomainConfusion(WIDTH, hidden=16)),
}
NORMS = {
    "bn": None,
    "dsbn": DomainBatchNorm2d,
    "autodial": AutoDIAL2d,
    "transnorm": TransNorm2d,
    "rn": ReciprocalNorm2d,
    "whitening": DomainWhitening2d,
}
MIXING = ("autodial", "transnorm", "rn")


def normalised(norm, seed=0, dtype=torch.float64):
    network = tiny_network(seed, dtype)
    return network if NORMS[norm] is None else convert_norm(network, NORMS[norm])


def batch_of(dtype=torch.float64, step=0, views=2, few=True):
    return tiny_pair(views=views, few=few).batch(step).to("cpu", dtype)


def joint_pass(network, batch, layers=()):
    """What an objective must see, by hand."""
    rows = torch.cat([x for x in (batch.xt, batch.xt2, batch.xl) if x is not None])
    source, target = forward_domains(network, batch.xs, rows, layers=layers)
    n = len(batch.xt)
    return source, target, n


def first(output, n):
    return type(output)(output.features[:n], output.logits[:n], {k: v[:n] for k, v in output.hidden.items()})


def gradients(loss, module, **kwargs):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True, **kwargs)


def moved(values):
    return any(g is not None and g.abs().max() > 1e-9 for g in values)  # more than rounding


def still(values):
    return all(g is None or not g.any() for g in values)


# Values


@pytest.mark.parametrize("norm", ["bn", "transnorm"])
def test_terms_are_the_mechanisms_on_the_outputs_of_one_joint_pass(norm):
    """Values, and gradients: a detach too many or too few leaves the value as it is."""
    network, batch = normalised(norm), batch_of()
    twin = copy.deepcopy(network)
    source, rows, n = joint_pass(twin, batch, ("block2", "fc1", "features", "logits"))
    target, view, few = first(rows, n), rows.logits[n : 2 * n], rows.logits[2 * n :]
    gs, gt = source.logits.softmax(1), target.logits.softmax(1)
    progress, lam = 0.3, dann_lambda(0.3)
    multi = MultiKernelMMD()
    plain = torch.stack([gt.log()[i] for i in range(n)])
    confusion, dann, cdan, soft = (METHODS[m]().double() for m in ("confusion", "dann", "cdan+e", "soft labels"))
    confused = confusion.loss(source.features, target.features)
    expected = {
        "dann-mmd": {"mmd": 0.7 * mmd2(source.hidden["fc1"], target.hidden["fc1"])},
        "ddc": {"mmd": 0.7 * (source.features.mean(0) - target.features.mean(0)).square().mean()},
        "dan": {"mmd": 0.7 * (multi(source.features, target.features) + multi(source.logits, target.logits))},
        "jan": {"jmmd": 0.7 * JointMMD()([source.features, gs], [target.features, gt])},
        "jan-a": {"jmmd": 0.7 * JointMMD()([source.features, gs], [target.features, gt])},  # θ starts at the identity
        "confusion": {"discriminator": confused["discriminator"], "confusion": 0.7 * confused["confusion"]},
        "soft labels": {"soft_labels": 0.7 * soft.loss(few, batch.yl)},
        "dann": {"adversarial": dann.loss(source.features, target.features, 0.7 * lam)},
        "cdan+e": {"adversarial": cdan.loss(source.features, target.features, source.logits, target.logits, 0.7 * lam)},
        "entropy": {"entropy": -0.7 * (gt * plain).sum(1).mean()},
        "pseudo-labels": {
            "pseudo_labels": 0.7 * sum(-plain[i].max() for i in range(n) if gt[i].max() >= 0.3) / n,
        },
        "mec": {"consensus": 0.7 * min_entropy_consensus(target.logits, view)},
        "joint": {},
    }
    classification = F.cross_entropy(torch.cat([source.logits, few]), torch.cat([batch.ys, batch.yl]))
    for method, terms in expected.items():
        trained = copy.deepcopy(network)
        losses = METHODS[method]().double()(trained, batch, progress)
        assert list(losses) == ["classification", *terms], method
        for name, value in (terms | {"classification": classification}).items():
            torch.testing.assert_close(losses[name], value, msg=lambda m, method=method: f"{method}: {m}")
            for got, wanted in zip(gradients(losses[name], trained), gradients(value, twin), strict=True):
                torch.testing.assert_close(got, wanted, msg=lambda m, method=method: f"{method}: {m}")


def test_layers_and_kernels_can_be_chosen():
    network, batch = normalised("bn"), batch_of(views=1, few=False)
    source, target, _ = joint_pass(network, batch, ("fc1", "relu1"))
    s, t = source.hidden, target.hidden
    cases = [
        (DaNN(1.0, layer="relu1", sigma2=2.0), mmd2(s["relu1"], t["relu1"], 2.0)),
        (DDC(1.0, layer="fc1"), linear_mmd2(s["fc1"], t["fc1"]) / WIDTH),
        (DAN(1.0, ("fc1",), weights=(0, 0, 1, 0, 0)), MultiKernelMMD(weights=(0, 0, 1, 0, 0))(s["fc1"], t["fc1"])),
    ]
    for objective, value in cases:
        torch.testing.assert_close(objective.double()(copy.deepcopy(network), batch, 0.0)["mmd"], value)


def test_adda_is_the_losses_of_two_separate_passes():
    network, batch = normalised("bn"), batch_of(few=False)
    source = tiny_network(1, torch.float64)
    objective = ADDA(source, WIDTH, 0.7, hidden=16).double()
    with torch.no_grad():
        fs = copy.deepcopy(source).eval()(batch.xs).features
    ft = copy.deepcopy(network).train()(batch.xt).features
    expected = objective.loss(fs, ft)
    losses = objective(network, batch, 0.0)
    assert list(losses) == ["discriminator", "encoder"]
    torch.testing.assert_close(losses["discriminator"], expected["discriminator"])
    torch.testing.assert_close(losses["encoder"], 0.7 * expected["encoder"])


def test_source_only_is_cross_entropy_of_the_source():
    network, batch = normalised("bn"), batch_of()
    expected = F.cross_entropy(copy.deepcopy(network)(batch.xs).logits, batch.ys)
    losses = SourceOnly()(network, batch, 0.0)
    assert list(losses) == ["classification"]
    torch.testing.assert_close(losses["classification"], expected)


def test_labelled_target_images_enter_the_classification():
    """L_C is the mean over all labelled rows, source and target alike; nobody else's label is asked for."""
    network, batch = normalised("bn"), batch_of(views=1)
    losses = Objective()(copy.deepcopy(network), batch, 0.0)
    other = Objective()(copy.deepcopy(network), dataclasses.replace(batch, yl=(batch.yl + 1) % CLASSES), 0.0)
    assert losses["classification"] != other["classification"]
    source, rows, n = joint_pass(network, batch)
    per_row = [
        -logits.log_softmax(0)[label]
        for logits, label in [
            *zip(source.logits, batch.ys, strict=True),
            *zip(rows.logits[n:], batch.yl, strict=True),
        ]
    ]
    torch.testing.assert_close(losses["classification"], torch.stack(per_row).mean())


def test_combined_is_the_sum_in_one_pass():
    network, batch = normalised("transnorm"), batch_of()
    parts = [DAN(0.7, ("fc1",)), EntropyMinimization(0.3), MEC(0.2), DANN(WIDTH, hidden=16).double()]
    passes = []
    network.features.block1.register_forward_hook(lambda *_: passes.append(1))
    losses = Combined(*parts)(copy.deepcopy(network), batch, 0.4)
    assert len(passes) == 1
    expected = {}
    for part in parts:
        expected |= part(copy.deepcopy(network), batch, 0.4)
    assert list(losses) == ["classification", "mmd", "entropy", "consensus", "adversarial"]
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert Combined(*parts).layers == ("fc1",)


# Weights and schedules


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("joint", "source", "combined")])
def test_schedule_and_weight_multiply(method):
    """The method's terms, and where λ is in the reversal, the gradient of the features instead of the value."""
    network, batch = normalised("bn"), batch_of()
    objective = METHODS[method]().double()
    losses = {}
    for schedule in (lambda p: p, lambda p: 2 * p, lambda p: 0.0):
        objective.schedule = schedule
        net = copy.deepcopy(network)
        terms = objective(net, batch, 0.25)
        terms.pop("classification", None)
        terms.pop("discriminator", None)  # learns at its own pace, whatever λ
        (value,) = terms.values()
        flow = torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in _paired(value, net.features)]
        )
        losses[schedule(0.25)] = value.detach(), flow
        assert objective.strength(0.25) == pytest.approx(0.7 * schedule(0.25))
    (one, two, zero) = (losses[k] for k in (0.25, 0.5, 0.0))
    reversed_ = method in ("dann", "cdan", "cdan+e")
    torch.testing.assert_close(two[0], one[0] if reversed_ else 2 * one[0])
    torch.testing.assert_close(two[1], 2 * one[1])
    assert one[1].abs().sum() > 0
    assert not zero[1].any()


def _paired(value, module):
    return zip(module.parameters(), gradients(value, module), strict=True)


def test_schedules_by_default():
    assert constant(0.3) == 1
    for method in ("dann", "cdan", "cdan+e"):
        assert METHODS[method]().schedule is dann_lambda
    for method in set(METHODS) - {"dann", "cdan", "cdan+e"}:
        assert METHODS[method]().schedule is constant


# Where gradients go


def test_source_only_never_looks_at_the_target():
    results = []
    for fill in (0.0, 1.0, torch.nan):
        network, batch = normalised("bn"), batch_of()
        blind = dataclasses.replace(batch, **{k: torch.full_like(getattr(batch, k), fill) for k in ("xt", "xt2", "xl")})
        loss = SourceOnly()(network, blind, 0.0)["classification"]
        results.append([loss, *gradients(loss, network), *network.state_dict().values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("norm", "seen"), [("bn", True), ("dsbn", False), ("whitening", False), ("rn", True)])
def test_target_reaches_the_joint_baseline_only_through_shared_statistics(norm, seen):
    network, batch = normalised(norm), batch_of(views=1, few=False)
    for gate in gate_parameters(network):
        gate.data.fill_(0.7)
    xt = batch.xt.requires_grad_()
    (gradient,) = torch.autograd.grad(Objective()(network, batch, 0.0)["classification"], xt, allow_unused=True)
    assert bool(gradient.abs().max() > 1e-9) == seen


def test_confusion_trains_discriminator_and_features_apart():
    network, objective = normalised("bn"), METHODS["confusion"]().double()
    losses = objective(network, batch_of(), 0.5)
    assert still(gradients(losses["discriminator"], network))
    assert moved(gradients(losses["discriminator"], objective))
    assert still(gradients(losses["confusion"], objective))
    assert moved(gradients(losses["confusion"], network.features))
    assert still(gradients(losses["confusion"], network.classifier))


def test_dann_reverses_the_features_gradient_and_not_the_discriminators():
    network, batch, objective = normalised("bn"), batch_of(views=1, few=False), METHODS["dann"]().double()
    source, target = forward_domains(network, batch.xs, batch.xt)
    logits = objective.loss.discriminator(torch.cat([source.features, target.features]))
    labels = torch.tensor([1.0] * len(batch.xs) + [0.0] * len(batch.xt), dtype=torch.float64)
    plain = F.binary_cross_entropy_with_logits(logits, labels)
    loss = objective(network, batch, 0.2)["adversarial"]
    for reversed_, direct in zip(gradients(loss, network.features), gradients(plain, network.features), strict=True):
        torch.testing.assert_close(reversed_, -0.7 * dann_lambda(0.2) * direct)
    for learned, direct in zip(gradients(loss, objective), gradients(plain, objective), strict=True):
        torch.testing.assert_close(learned, direct)
        assert learned.any()


def test_cdan_conditions_on_predictions_without_training_the_classifier():
    network, objective = normalised("bn"), METHODS["cdan"]().double()
    loss = objective(network, batch_of(), 0.5)["adversarial"]
    assert still(gradients(loss, network.classifier))
    assert moved(gradients(loss, network.features))
    weighted = METHODS["cdan+e"]().double()(network, batch_of(), 0.5)["adversarial"]
    assert moved(gradients(weighted, network.classifier))  # the official entropy weights keep their gradient


def test_jan_a_ascends_in_theta_and_descends_in_the_features():
    network, batch, objective = normalised("bn"), batch_of(views=1, few=False), METHODS["jan-a"]().double()
    for theta in objective.maps:  # off the identity, where its gradient is no special case
        theta.weight.data += 0.1 * torch.randn(theta.weight.shape, generator=torch.Generator().manual_seed(0))
    source, target = forward_domains(network, batch.xs, batch.xt)
    views = [
        [theta(z) for theta, z in zip(objective.maps, (out.features, out.logits.softmax(1)), strict=True)]
        for out in (source, target)
    ]
    plain = 0.7 * JointMMD()(*views)
    loss = objective(network, batch, 0.0)["jmmd"]
    torch.testing.assert_close(loss, plain)
    for up, down in zip(gradients(loss, objective), gradients(plain, objective), strict=True):
        torch.testing.assert_close(up, -down)
        assert up.any()
    for g, direct in zip(gradients(loss, network), gradients(plain, network), strict=True):
        torch.testing.assert_close(g, direct)
    assert moved(gradients(loss, network.features))
    before = copy.deepcopy(objective.maps)
    torch.optim.SGD(objective.parameters(), 1e-2).step()  # no gradient yet: nothing moves
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(before, objective.maps, strict=True))
    loss.backward()
    torch.optim.SGD(objective.parameters(), 1e-2).step()
    assert objective(network, batch, 0.0)["jmmd"] > loss


def test_adda_moves_the_target_encoder_and_the_discriminator_alone():
    network, source = normalised("dsbn"), tiny_network(1, torch.float64)
    objective = ADDA(source, WIDTH, hidden=16).double()
    start, frozen = copy.deepcopy(network.classifier.state_dict()), copy.deepcopy(source.state_dict())
    losses = objective(network.train(), batch_of(), 0.0)
    assert still(gradients(losses["discriminator"], network))
    assert moved(gradients(losses["discriminator"], objective))
    assert still(gradients(losses["encoder"], objective))
    assert moved(gradients(losses["encoder"], network.features))
    assert still(gradients(losses["encoder"], network.classifier))
    fit(network, tiny_pair(), objective, steps=3, device="cpu")
    assert all(torch.equal(v, start[k]) for k, v in network.classifier.state_dict().items())
    kept = objective._source[0]
    assert kept is not source
    assert not kept.training
    assert all(torch.equal(v, frozen[k]) for k, v in kept.state_dict().items())  # running statistics, too
    assert not any(p.requires_grad for p in kept.parameters())
    assert all(p.requires_grad for p in source.parameters())  # the given network is left as it was


def test_pseudo_labels_teach_only_where_they_are_confident():
    network, batch = normalised("bn"), batch_of(views=1, few=False)
    assert PseudoLabels(threshold=1.0)(network, batch, 0.0)["pseudo_labels"] == 0
    everywhere = PseudoLabels(threshold=0.0)(network, batch, 0.0)["pseudo_labels"]
    assert everywhere > PseudoLabels(threshold=0.6)(network, batch, 0.0)["pseudo_labels"] > 0
    assert moved(gradients(everywhere, network))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("joint", "source")])
def test_terms_reach_the_features(method):
    """A term without gradient trains nothing, and no loss curve tells."""
    network, objective = normalised("bn"), METHODS[method]().double()
    losses = objective(network, batch_of(), 0.5)
    terms = [v for k, v in losses.items() if k not in ("classification", "discriminator")]
    assert all(moved(gradients(term, network.features)) for term in terms)


# Methods with normalisations


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_step_of_each_method_with_each_normalisation(method, norm, monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    network, objective = normalised(norm, dtype=torch.float32), METHODS[method]()
    pair = tiny_pair(views=2, few=True)
    if method == "adda" and norm in MIXING:
        with pytest.raises(ValueError, match="ADDA never passes source and target together"):
            fit(network, pair, objective, steps=1, device="cpu")
        return
    before = copy.deepcopy((network.state_dict(), objective.state_dict()))
    history = fit(network, pair, objective, steps=2, start=1, device="cpu")  # half way: λ of the reversal is not 0
    assert history.losses.notna().all(axis=None)
    for module, old in ((network, before[0]), (objective, before[1])):
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        if method == "adda":
            trained = {name for name in trained if not name.startswith("classifier")}
        gates = {name for name in trained if "gate_" in name or name.endswith("alpha")}
        changed = {name for name in trained if not torch.equal(module.state_dict()[name], old[name])}
        assert changed >= trained - gates
        assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_in_one_group_and_gates_are_not_decayed(method, norm):
    network, objective = normalised(norm), METHODS[method]()
    network.features.block1[0].weight.requires_grad_(False)
    groups = objective.parameter_groups(network)
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [*network.parameters(), *objective.parameters()]
    if method == "adda":
        trained = [*network.features.parameters(), *objective.loss.parameters()]
    expected = [id(p) for p in trained if p.requires_grad]
    gates = {id(p) for p in gate_parameters(network)}
    if method == "adda" and norm in MIXING:
        return  # refused by its first step
    assert sorted(grouped) == sorted(expected)
    assert bool(gates) == (norm in ("autodial", "rn"))
    for group in groups:
        assert group["params"]
        assert all((id(p) in gates) == (group.get("weight_decay") == 0.0) for p in group["params"])


def test_weight_decay_spares_the_gates():
    """A gate at 0.8 without gradient stays there under a decay that shrinks every weight."""
    network = normalised("autodial")
    gates = gate_parameters(network)
    for gate in gates:
        gate.data.fill_(0.8)
    optimizer = torch.optim.SGD(Objective().parameter_groups(network), lr=0.1, weight_decay=0.5)
    before = network.classifier.weight.norm().item()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(gate == 0.8 for gate in gates)
    assert network.classifier.weight.norm().item() == pytest.approx(0.95 * before)


# State


@pytest.mark.parametrize("method", METHODS)
def test_round_trips_keep_the_losses(method):
    network, batch = normalised("bn"), batch_of()
    objective = METHODS[method]().double()
    for p in objective.parameters():
        p.data += 0.01
    loaded = METHODS[method]().double()
    loaded.load_state_dict(objective.state_dict(), strict=True)
    expected = objective(copy.deepcopy(network), batch, 0.3)
    for twin in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective)), loaded):
        losses = twin(copy.deepcopy(network), batch, 0.3)
        assert list(losses) == list(expected)
        assert all(torch.equal(losses[name], expected[name]) for name in expected)


@pytest.mark.parametrize("make", [lambda s: DANN(WIDTH, seed=s), lambda s: CDAN(600, 10, seed=s)], ids=["dann", "cdan"])
def test_first_weights_and_random_maps_depend_on_the_seed_alone(make, monkeypatch):
    def no_gpu(*_):
        raise AssertionError("seeds the GPU's generators, and they are not restored")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", no_gpu)
    states = []
    for draws, seed in ((0, 3), (5, 3), (0, 4)):
        torch.rand(draws)
        states.append(torch.cat([v.flatten() for v in make(seed).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(-1.0), "weight must be 0 or more, not -1.0"),
        (lambda: DAN(float("nan")), "weight must be 0 or more, not nan"),
        (lambda: DANN(WIDTH, float("inf")), "weight must be 0 or more, not inf"),
        (lambda: DAN(layers=()), "layers is empty"),
        (lambda: JAN(adversarial=True), "needs dims=.*not None"),
        (lambda: JAN(adversarial=True, dims=(3,)), r"needs dims=.*not \(3,\)"),
        (lambda: PseudoLabels(threshold=1.5), r"probability in \[0, 1\], not 1.5"),
        (lambda: Combined(), "at least one objective"),
        (lambda: Combined(DAN(), SourceOnly()), "SourceOnly passes the domains apart"),
        (lambda: Combined(METHODS["adda"]()), "ADDA passes the domains apart"),
    ],
)
def test_unfit_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (DaNN(layer="fc9"), "unknown layer 'fc9': this network has block1"),
        (MEC(), "give DomainPair views=2"),
        (SoftLabels(soft_label_loss()), "give DomainPair a labelled_target"),
        (Combined(DAN(), DDC()), "two of the combined objectives have a term 'mmd'"),
        (DANN(WIDTH + 1), r"takes features of shape \(n, 9\)"),
    ],
)
def test_what_a_batch_or_network_lacks_is_named(objective, message):
    with pytest.raises(ValueError, match=message):
        objective.double()(normalised("bn"), batch_of(views=1, few=False), 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_in_half_precision_has_its_losses_in_float32(method):
    """Cast as a whole, with the objective: values near those of the same weights and outputs in float64."""
    network, batch = normalised("bn"), batch_of()
    objective = METHODS[method]().double()
    low = copy.deepcopy(network).bfloat16(), copy.deepcopy(objective).bfloat16()
    exact = objective(network, batch, 0.5)
    losses = low[1](low[0], batch_of(torch.bfloat16), 0.5)
    assert list(losses) == list(exact)
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.02), name
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for module in low for p in module.parameters())


@pytest.mark.parametrize("method", ["entropy", "pseudo-labels", "cdan+e", "mec"])
def test_a_class_ruled_out_gives_no_nan(method):
    """Logits of −∞ are a class that can't be: 0 · log 0 = 0, in value and gradient."""
    network, batch = normalised("bn"), batch_of(few=False)
    with torch.no_grad():
        network.classifier.bias[0] = -torch.inf
    batch.ys.clamp_(min=1)
    losses = METHODS[method]().double()(network, batch, 0.5)
    for name, value in losses.items():
        assert value.isfinite(), name
        assert all(g is None or g.isfinite().all() for g in gradients(value, network.features)), name


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("source", "adda", "soft labels")])
def test_nan_in_the_target_is_never_silently_a_number(method):
    network, batch = normalised("dsbn"), batch_of()
    batch.xt[0] = torch.nan
    losses = METHODS[method]().double()(network, batch, 0.5)
    expected = [name for name in losses if name != "classification"]
    assert all(losses[name].isnan() for name in expected)


def test_batch_without_extras_is_enough():
    batch = batch_of(views=1, few=False)
    assert list(DAN()(normalised("bn"), Batch(batch.xs, batch.ys, batch.xt), 0.0)) == ["classification", "mmd"]
    assert isinstance(DAN(), nn.Module)
