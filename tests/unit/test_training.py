"""The training loop and the evaluation."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from support_methods import CLASSES, WIDTH, stripes, tiny_network, tiny_pair
from torch import nn

from deeptransfer.domains import Domain, TensorDomain
from deeptransfer.networks import Output
from deeptransfer.normalization import DomainBatchNorm2d, convert_norm, use_domain
from deeptransfer.objectives import CDAN, DAN, DANN, Objective, SourceOnly
from deeptransfer.training import annealed, default_device, evaluate, fit, predict, seed_everything
from deeptransfer.transferability import freeze


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")


def state(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class WithTerm(Objective):
    """Classification, and a second term that is whatever ``term(progress)`` says."""

    def __init__(self, term):
        super().__init__()
        self.term, self.seen = term, []

    def terms(self, passed, batch, progress):
        self.seen.append(progress)
        return {"extra": passed.source.logits.sum() * 0 + self.term(progress)}


class Scripted(nn.Module):
    """A "network" whose logits are read off the image: pixel k is the logit of class k."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        logits = x.flatten(1) * self.scale
        return Output(logits, logits, {})


def scripted(predicted, labels, name="scripted"):
    images = torch.eye(3)[torch.tensor(predicted)].view(-1, 1, 1, 3)
    return TensorDomain(name, images, torch.tensor(labels), CLASSES)


# What training does


def test_loss_falls_and_the_task_is_learned():
    network = tiny_network()
    history = fit(network, tiny_pair(batch_size=24), SourceOnly(), steps=40, lr=0.05)
    losses = history.losses["classification"]
    assert losses.iloc[-5:].mean() < 0.2 * losses.iloc[:5].mean()
    assert evaluate(network, stripes(30, 9), "source").accuracy > 0.9


def test_one_step_is_sgd_with_nesterov_by_hand():
    """Two steps against the update written out: v ← μv + g, θ ← θ − η (g + μv), with g + wd·θ for g."""
    network, pair = tiny_network(dtype=torch.float64), tiny_pair()
    by_hand = copy.deepcopy(network)
    fit(network, pair, SourceOnly(), steps=2, lr=0.1, momentum=0.8, weight_decay=0.01)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for step in range(2):
        rate = 0.1 * (1 + 10 * step / 2) ** -0.75
        batch = pair.batch(step)
        loss = nn.functional.cross_entropy(by_hand.train()(batch.xs.double()).logits, batch.ys)
        for i, (p, g) in enumerate(
            zip(by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True)
        ):
            g = g + 0.01 * p.detach()
            velocity[i] = 0.8 * velocity[i] + g
            p.data -= rate * (g + 0.8 * velocity[i])
    for p, q in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [SourceOnly, lambda: DAN(0.5), lambda: DANN(WIDTH)])
def test_repeats_to_the_last_bit_whatever_the_global_generator(objective):
    runs = []
    for seed in (1, 2):
        seed_everything(seed)
        network, method = tiny_network(), objective()
        history = fit(network, tiny_pair(), method, steps=4)
        runs.append((state(network, method), history.steps))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


class Stop(Exception):
    pass


@pytest.mark.parametrize("objective", [lambda: DANN(WIDTH), lambda: CDAN(WIDTH, 3, weighting="per-domain")])
def test_resumed_run_ends_in_the_same_bits(objective):
    """With schedules of λ and learning rate, momentum, running statistics: only the step has to be known."""

    def start():
        network, method = tiny_network(), objective()
        groups = method.parameter_groups(network)
        return network, method, torch.optim.SGD(groups, 0.05, 0.9, weight_decay=5e-4, nesterov=True)

    whole = start()
    full = fit(whole[0], tiny_pair(views=2), whole[1], steps=7, optimizer=whole[2])

    def stop(network):
        raise Stop

    first = start()
    with pytest.raises(Stop):
        fit(first[0], tiny_pair(views=2), first[1], steps=7, optimizer=first[2], probes={"stop": stop}, every=3)
    second = start()
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    rest = fit(second[0], tiny_pair(views=2), second[1], steps=7, optimizer=second[2], start=3)
    assert same(state(*whole[:2]), state(*second[:2]))
    assert rest.steps == full.steps[3:]


def test_float64_network_trains_in_float64_with_its_discriminator():
    network, objective = tiny_network(dtype=torch.float64), DANN(WIDTH)
    fit(network, tiny_pair(), objective, steps=2)
    assert all(p.dtype == torch.float64 for p in [*network.parameters(), *objective.parameters()])


def test_frozen_block_stays():
    network = tiny_network()
    freeze(network.features.block1)
    before = state(network.features.block1)
    fit(network, tiny_pair(), Objective(), steps=3)
    assert same(state(network.features.block1), before)


def test_training_is_in_training_mode_whatever_a_probe_leaves_behind():
    """In eval mode the running statistics would normalise, and stand still."""
    runs = []
    for probes in (None, {"sleep": lambda n: float(n.eval().training)}):
        network = tiny_network()
        if probes:
            network.eval()
        fit(network, tiny_pair(), Objective(), steps=3, probes=probes, every=1)
        runs.append(state(network))
    assert same(*runs)


# What it writes down


def test_history_holds_every_step_and_every_term():
    objective = DAN(0.5)
    history = fit(tiny_network(), tiny_pair(), objective, steps=4, lr=0.1, schedule=lambda p: 1 - p)
    table = history.losses
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table.index.name == "step"
    assert list(table.columns) == ["progress", "lr", "classification", "mmd"]
    assert table["progress"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["lr"].tolist() == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert history.curves.empty
    assert history.curves.index.name == "step"


def test_history_of_a_finished_run_is_an_empty_table():
    history = fit(tiny_network(), tiny_pair(), SourceOnly(), steps=3, start=3)
    assert history.losses.empty
    assert history.losses.index.name == "step"


@pytest.mark.parametrize(("every", "expected"), [(None, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_probes_come_every_so_many_updates_and_at_the_end(every, expected):
    updates, seen = [], []

    class Counting(SourceOnly):
        def forward(self, network, batch, progress):
            updates.append(progress)
            return super().forward(network, batch, progress)

    def probe(network):
        seen.append(len(updates))
        return torch.tensor(7.0)

    history = fit(tiny_network(), tiny_pair(), Counting(), steps=5, probes={"updates": probe}, every=every)
    assert seen == expected
    assert history.curves.index.tolist() == expected
    assert history.curves["updates"].tolist() == [7.0] * len(expected)


def test_probe_may_evaluate_without_changing_the_run():
    runs = []
    for probes in (None, {"accuracy": lambda n: evaluate(n, stripes(9, 3)).accuracy}):
        network = tiny_network()
        fit(network, tiny_pair(), DAN(0.5), steps=4, probes=probes, every=1)
        runs.append(state(network))
    assert same(*runs)


# Schedules and groups


def test_annealed_is_the_papers():
    assert [annealed(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 6**-0.75, 11**-0.75])


def test_progress_is_the_only_clock():
    objective = WithTerm(lambda p: 0.0)
    fit(tiny_network(), tiny_pair(), objective, steps=5, start=2)
    assert objective.seen == [0.4, 0.6, 0.8]


def test_lr_mult_scales_its_group():
    class Fast(SourceOnly):
        def parameter_groups(self, network):
            head = list(network.classifier.parameters())
            return [{"params": list(network.features.parameters()), "lr_mult": 0.0}, {"params": head, "lr_mult": 3.0}]

    start, network, slow = tiny_network(), tiny_network(), tiny_network()
    fit(network, tiny_pair(), Fast(), steps=1, lr=0.1, momentum=0, weight_decay=0)
    fit(slow, tiny_pair(), SourceOnly(), steps=1, lr=0.1, momentum=0, weight_decay=0)
    assert all(
        torch.equal(p, q) for p, q in zip(network.features.parameters(), start.features.parameters(), strict=True)
    )
    moved = network.classifier.weight - start.classifier.weight
    torch.testing.assert_close(moved, 3 * (slow.classifier.weight - start.classifier.weight), rtol=1e-4, atol=1e-7)


def test_given_optimizer_keeps_its_own_rates():
    network = tiny_network()
    optimizer = torch.optim.Adam(
        [
            {"params": list(network.features.parameters()), "lr": 1e-3},
            {"params": list(network.classifier.parameters())},
        ],
        lr=0.01,
    )
    for _ in range(2):  # a second run starts from the first rates, not from the annealed ones
        history = fit(network, tiny_pair(), SourceOnly(), steps=2, optimizer=optimizer, schedule=lambda p: 1 - p)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0005, 0.005])
        assert history.losses["lr"].tolist() == pytest.approx([0.001, 0.0005])


# When it must stop


def test_nan_in_an_image_stops_at_its_step_with_the_weights_before():
    source = stripes(24, 0)
    source.tensors[0][13, 0, 2, 2] = torch.nan
    pair = tiny_pair()
    pair.source = source
    step = next(step for step in range(4) if pair.batch(step).xs.isnan().any())
    network, snapshots = tiny_network(), []
    probes = {"snapshot": lambda n: snapshots.append([p.clone() for p in n.parameters()]) or 0.0}
    snapshots.append([p.clone() for p in network.parameters()])
    with pytest.raises(FloatingPointError, match=rf"'classification' is nan at step {step}: lower lr="):
        fit(network, pair, SourceOnly(), steps=8, probes=probes, every=1)
    assert len(snapshots) == step + 1
    assert same(list(network.parameters()), snapshots[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_term_that_is_not_finite_is_named(value):
    network = tiny_network()
    objective = WithTerm(lambda p: value if p >= 0.5 else 0.0)
    with pytest.raises(FloatingPointError, match=rf"'extra' is {value} at step 2: lower lr=0\.00522 or this term's"):
        fit(network, tiny_pair(), objective, steps=4)
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 2, "every": 0}, {"steps": -1}, {"steps": 2, "stop": 0}])
def test_unfit_numbers_are_refused(arguments):
    told = ", ".join(f"{name}={arguments.get(name)}" for name in ("steps", "stop", "every"))
    message = f"at least 1, not {told}"
    with pytest.raises(ValueError, match=message):
        fit(tiny_network(), tiny_pair(), SourceOnly(), **arguments)


def test_negative_start_is_refused():
    with pytest.raises(ValueError, match="not -1"):
        fit(tiny_network(), tiny_pair(), SourceOnly(), steps=2, start=-1)


# Evaluation


def test_evaluation_equals_counting_by_hand():
    truth, guess = [0, 0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 2, 0, 0]
    result = evaluate(Scripted(), scripted(guess, truth))
    assert result.accuracy == pytest.approx(4 / 7)
    assert result.confusion.tolist() == [[3, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert result.per_class[:2].tolist() == pytest.approx([3 / 4, 1 / 3])
    assert result.per_class[2].isnan()  # no image of this class
    assert result.correct.tolist() == [t == g for t, g in zip(truth, guess, strict=True)]


def test_predict_walks_the_whole_domain_in_order():
    domain, network = stripes(23, 4), tiny_network().eval()
    features, logits, labels = predict(network, domain, batch_size=5)
    with torch.no_grad():
        whole = network(domain.tensors[0])
    torch.testing.assert_close(features, whole.features)
    torch.testing.assert_close(logits, whole.logits)
    assert torch.equal(labels, domain.tensors[1])
    assert not logits.requires_grad


def test_evaluation_uses_running_statistics_and_touches_none():
    network = tiny_network().train()
    before = state(network)
    one_by_one = torch.cat([predict(network, stripes(9, 4).subset([i]))[1] for i in range(9)])
    torch.testing.assert_close(one_by_one, predict(network, stripes(9, 4))[1])
    assert same(state(network), before)


def test_mode_of_every_module_is_restored():
    network = tiny_network().train()
    network.features.block1.eval()
    modes = [m.training for m in network.modules()]
    assert len(set(modes)) == 2
    evaluate(network, stripes(3, 0))
    assert [m.training for m in network.modules()] == modes
    with pytest.raises(ValueError):
        evaluate(network, TensorDomain("colour", torch.rand(3, 2, 8, 8), torch.zeros(3), CLASSES))
    assert [m.training for m in network.modules()] == modes


def test_statistics_are_those_of_the_named_domain():
    network, domain = convert_norm(tiny_network(), DomainBatchNorm2d), stripes(12, 4)
    fit(network, tiny_pair(), Objective(), steps=5)
    results = {}
    for name in ("source", "target"):
        with torch.no_grad(), use_domain(network.eval(), name):
            results[name] = network(domain.tensors[0]).logits
        torch.testing.assert_close(predict(network, domain, name)[1], results[name])
        assert torch.equal(
            evaluate(network, domain, name).correct, predict(network, domain, name)[1].argmax(1) == domain.tensors[1]
        )
    assert not torch.allclose(results["source"], results["target"])
    assert torch.equal(predict(network, domain)[1], predict(network, domain, "target")[1])


def test_evaluation_of_nothing_is_an_error():
    class Empty(Domain):
        name, classes = "void", CLASSES

        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="'void' has no image to predict"):
        evaluate(tiny_network(), Empty())


def test_evaluation_follows_the_networks_dtype():
    assert predict(tiny_network(dtype=torch.float64), stripes(3, 0))[1].dtype == torch.float64


def test_evaluation_leaves_the_global_generator_alone():
    network, domain = tiny_network(), stripes(9, 0)
    before = torch.get_rng_state()
    evaluate(network, domain)
    assert torch.equal(torch.get_rng_state(), before)


# Seeds, device, progress bar


def test_seed_everything_seeds_everything():
    def draw(generator):
        numpy = np.random.random()  # noqa: NPY002 - the global state is what is tested
        return random.random(), numpy, torch.rand(1).item(), torch.rand(1, generator=generator).item()

    first = draw(seed_everything(5))
    assert draw(seed_everything(5)) == first
    assert all(a != b for a, b in zip(draw(seed_everything(6)), first, strict=True))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_device_is_the_environments_or_the_best(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "meta")
    assert default_device() == torch.device("meta")
    monkeypatch.delenv("DEEPTRANSFER_DEVICE")
    for available, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert default_device() == torch.device(name)


def test_fit_obeys_the_environments_device_and_the_argument_more(monkeypatch):
    network = tiny_network()
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "no-such-device")
    fit(network, tiny_pair(), SourceOnly(), steps=1, device="cpu")
    with pytest.raises(RuntimeError, match="no-such-device"):
        fit(network, tiny_pair(), SourceOnly(), steps=1)


def test_progress_bar_shows_unless_switched_off(monkeypatch, capsys):
    fit(tiny_network(), tiny_pair(), SourceOnly(), steps=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("DEEPTRANSFER_PROGRESS")
    fit(tiny_network(), tiny_pair(), SourceOnly(), steps=1)
    out, err = capsys.readouterr()
    assert "SourceOnly" in err
    assert out == ""
