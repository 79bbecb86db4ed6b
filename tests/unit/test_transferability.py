"""Copying, freezing and re-initialising blocks, and the treatments built from them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from deeptransfer.networks import Network, small_cnn
from deeptransfer.transferability import TREATMENTS, copy_blocks, freeze, thaw, treatment

DEPTH = 4  # blocks of small_cnn before the classifier


def base(seed: int, classes: int = 5) -> Network:
    """A network whose BatchNorm statistics and affine are not the initial ones, as after training."""
    network = small_cnn(classes=classes, size=8, widths=(3, 4), hidden=(6,), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


@pytest.fixture
def a() -> Network:
    return base(1, classes=3)


@pytest.fixture
def b() -> Network:
    return base(2)


def build(name: str, n: int, a: Network, b: Network, seed: int = 7) -> Network:
    return treatment(name, n, a, b, torch.Generator().manual_seed(seed))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def train_one_step(network: Network) -> None:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    x, y = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    nn.functional.cross_entropy(network(x).logits, y).backward()
    optimizer.step()


@pytest.mark.parametrize("n", range(DEPTH + 1))
@pytest.mark.parametrize("name", TREATMENTS)
def test_each_treatment_copies_the_right_blocks_and_draws_the_others_anew(name, n, a, b):
    network = build(name, n, a, b)
    assert network.training
    sources = {"B": b, "A": a}
    for i, (block_name, block) in enumerate(network.blocks.items()):
        if not list(block.parameters()):
            continue
        copied_from = [
            k for k, v in sources.items() if k == name[0] and same(state(block), state(v.blocks[block_name]))
        ]
        assert copied_from == ([name[0]] if i < n and name != "random" else [])
        for other in sources.values():
            weights = [m.weight for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            others = [m.weight for m in other.blocks[block_name].modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            if i >= n or name == "random":
                assert all(w.shape != o.shape or not torch.equal(w, o) for w, o in zip(weights, others, strict=True))


@pytest.mark.parametrize("n", range(DEPTH + 1))
@pytest.mark.parametrize("name", TREATMENTS)
def test_a_step_of_training_moves_exactly_what_is_not_frozen(name, n, a, b):
    """Statistics and affine of BatchNorm included, in train mode, with weight decay, also after eval and train."""
    network = build(name, n, a, b)
    before = [state(block) for block in network.blocks.values()]
    train_one_step(network.eval())
    for i, (block, old) in enumerate(zip(network.blocks.values(), before, strict=True)):
        frozen = i < n and not name.endswith("+")
        assert block.training is not frozen
        if old:
            assert same(state(block), old) is frozen
        assert all(p.requires_grad is not frozen for p in block.parameters())


def test_n_0_is_training_from_scratch_whatever_the_treatment(a, b):
    networks = [build(name, 0, a, b) for name in TREATMENTS]
    for network in networks:
        train_one_step(network)
    assert all(same(state(networks[0]), state(other)) for other in networks[1:])


def test_new_weights_do_not_depend_on_the_treatment_and_follow_the_generator(a, b):
    """Paired comparisons: AnB and BnB start their upper blocks from the same weights."""
    first, second, other = build("AnB", 2, a, b), build("BnB+", 2, a, b), build("AnB", 2, a, b, seed=8)
    assert same(state(first.classifier), state(second.classifier))
    assert not same(state(first.classifier), state(other.classifier))


def test_new_blocks_start_with_fresh_statistics(a, b):
    network = build("BnB", 1, a, b)
    norm = network.blocks["block2"][1]
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))


@pytest.mark.parametrize("name", TREATMENTS)
def test_the_bases_are_not_changed(name, a, b):
    before = [state(a), state(b)]
    network = build(name, 3, a, b)
    train_one_step(network)
    assert same(before[0], state(a))
    assert same(before[1], state(b))
    assert all(p.requires_grad for p in [*a.parameters(), *b.parameters()])
    assert all(m.training for m in [*a.modules(), *b.modules()])


def test_the_classifier_has_the_classes_of_b(a, b):
    assert build("AnB", DEPTH, a, b).classifier.out_features == 5


def test_a_frozen_base_gives_a_network_that_trains(a, b):
    for block in b.blocks.values():
        freeze(block)
    network = build("AnB+", 2, a, b)
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.training for m in network.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_of_a_frozen_network_is_frozen_itself(again, a, b):
    """And its override holds the copy's block, not the original's."""
    network = build("BnB", 2, a, b)
    other = again(network)
    for original, block in zip(list(network.blocks.values())[:2], list(other.blocks.values())[:2], strict=True):
        assert block.train.args[0] is block is not original
    before = state(other.blocks["block1"])
    train_one_step(other)
    assert same(before, state(other.blocks["block1"]))
    assert network.blocks["block1"].training is False


def test_freezing_keeps_the_names_in_the_state_dict(a, b):
    network = build("BnB", 3, a, b)
    b.load_state_dict(network.state_dict(), strict=True)


def test_a_frozen_block_ignores_train_until_thawed():
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert freeze(block) is block
    network = nn.Sequential(block, nn.Linear(2, 2)).train()
    assert not any(m.training for m in block.modules())
    assert network[1].training
    thaw(block)
    network.train()
    assert all(m.training for m in block.modules())
    assert all(p.requires_grad for p in block.parameters())
    network.eval()
    assert not any(m.training for m in block.modules())


@pytest.mark.parametrize("n", [-1, DEPTH + 1])
@pytest.mark.parametrize("name", TREATMENTS)
def test_n_outside_the_network_is_refused(name, n, a, b):
    with pytest.raises(ValueError, match=rf"0 … {DEPTH}.*got {n}"):
        treatment(name, n, a, b)


def test_an_unknown_treatment_is_refused(a, b):
    with pytest.raises(ValueError, match=r"'CnB'.*AnB\+"):
        treatment("CnB", 1, a, b)


def test_networks_that_differ_are_refused(b):
    wider = small_cnn(size=8, widths=(5, 4), hidden=(6,))
    with pytest.raises(ValueError, match="'block1' can't be copied"):
        copy_blocks(b, wider, 1)
    shallower = small_cnn(size=8, widths=(3,), hidden=(6,))
    with pytest.raises(ValueError, match="'block2' can't be copied"):
        copy_blocks(b, shallower, 3)
