"""Who knows which rows belong to which domain, how long, and what a gradient checkpoint makes of it."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from deeptransfer.normalization import (
    AutoDIAL1d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainWhitening1d,
    ReciprocalNorm1d,
    TransNorm1d,
    TransNorm2d,
    forward_domains,
    gate_parameters,
    use_domain,
)
from deeptransfer.normalization.membership import PASSES, SPLITS

VECTOR_LAYERS = [DomainBatchNorm1d, AutoDIAL1d, TransNorm1d, ReciprocalNorm1d, DomainWhitening1d]
CAMERAS = ("gate", "hall", "yard")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apart(shift=4.0):
    """A layer whose two rows differ, in evaluation, and a batch."""
    layer = DomainBatchNorm1d(3, dtype=torch.float64)
    forward_domains(layer, draw(5, 3), draw(4, 3, seed=1) + shift)
    return layer.eval(), draw(6, 3, seed=2)


def of(layer, domain, x):
    with use_domain(layer, domain):
        return layer(x)


# K batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_k_domains_are_k_batchnorms(shared):
    """Outputs, gradients, running rows, and evaluation by name and by number."""
    layer = DomainBatchNorm2d(3, domains=CAMERAS, shared_affine=shared, dtype=torch.float64)
    plain = [nn.BatchNorm2d(3, dtype=torch.float64) for _ in CAMERAS]
    ours = [draw(n, 3, 2, 2, seed=n).requires_grad_() for n in (4, 1, 6)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    outputs, wanted = forward_domains(layer, *ours), [p(x) for p, x in zip(plain, theirs, strict=True)]
    assert_close(outputs, tuple(wanted))
    for out in (outputs, wanted):
        sum((y**3).sum() * (d + 1) for d, y in enumerate(out)).backward()
    for d, (x, same) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(x.grad, same.grad)
        assert_close(layer.running_mean[d], plain[d].running_mean)
        assert_close(layer.running_var[d], plain[d].running_var)
    grads = [p.weight.grad for p in plain]
    assert_close(layer.weight.grad, sum(grads) if shared else torch.stack(grads))
    assert layer.num_batches_tracked.tolist() == [1, 1, 1]
    layer.eval()
    x = draw(5, 3, 2, 2, seed=9)
    for d, name in enumerate(CAMERAS):
        assert_close(of(layer, name, x), plain[d].eval()(x))
        assert_close(of(layer, np.int64(d), x), of(layer, name, x), rtol=0, atol=0)
    assert_close(forward_domains(layer, x, x, x)[1], plain[1](x))


def test_whitening_takes_any_number_of_domains():
    layer = DomainWhitening1d(4, domains=3, momentum=1.0, dtype=torch.float64)
    parts = [draw(n, 4, seed=n) for n in (9, 8, 7)]
    outputs = forward_domains(layer, *parts)
    for row, (x, y) in enumerate(zip(parts, outputs, strict=True)):
        assert_close(layer.running_cov[row, 0], torch.cov(x.T))
        pair = DomainWhitening1d(4, dtype=torch.float64)
        assert_close(y, forward_domains(pair, x, parts[0])[0])
    layer.reset_running_stats()
    assert_close(layer.running_cov, torch.eye(4, dtype=torch.float64).expand(3, 1, 4, 4))


def test_one_domain_is_a_batchnorm():
    layer, plain, x = DomainBatchNorm1d(3, domains=1), nn.BatchNorm1d(3), draw(6, 3).float()
    assert_close(layer(x), plain(x))
    assert_close(layer.eval()(x), plain.eval()(x))
    assert_close(forward_domains(layer, x)[0], plain(x))


def test_a_plain_checkpoint_fills_every_row():
    plain = nn.BatchNorm2d(3)
    plain(draw(5, 3, 2, 2).float())
    for shared in (True, False):
        layer = DomainBatchNorm2d(3, domains=CAMERAS, shared_affine=shared)
        layer.load_state_dict(plain.state_dict())
        assert_close(layer.running_var, plain.running_var.expand(3, 3))
        assert layer.weight.shape == ((3,) if shared else (3, 3))
        assert layer.num_batches_tracked.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (0, "got 0"), (-1, "got -1"), ([], r"got \[\]"), ("source", "of names, got 'source'"), (True, "got True"),
        (["a", ""], "sequence of names"), (["a", 2], "sequence of names"), (["a", "b", "a"], "must differ, got"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(domains, message):
    with pytest.raises(ValueError, match=message):
        DomainBatchNorm1d(3, domains=domains)


@pytest.mark.parametrize("cls", [AutoDIAL1d, TransNorm1d, ReciprocalNorm1d])
def test_a_method_for_two_domains_says_so(cls):
    for domains in (1, 3, CAMERAS):
        with pytest.raises(ValueError, match=f"{cls.__name__} is made for two domains, got domains="):
            cls(3, domains=domains)
    assert cls(3, domains=("print", "pen")).row("pen") == 1


def test_unknown_domains_are_refused_with_the_known_ones():
    layer = DomainBatchNorm1d(3, domains=CAMERAS)
    for domain in ("target", 3, -1, True, 1.5, None):
        with pytest.raises(ValueError, match=r"must be 'gate', 'hall' or 'yard', got"), use_domain(layer, domain):
            pass
    with pytest.raises(ValueError, match="'0', '1', '2' or '3', got 4"), use_domain(DomainBatchNorm1d(3, domains=4), 4):
        pass
    with use_domain(nn.ReLU(), 7):  # a network without domain layers has nothing to be told
        pass


def test_evaluation_takes_the_row_named_target_or_asks():
    layer = DomainBatchNorm1d(3, domains=("source", "other", "target"))
    x = draw(4, 3).float()
    with use_domain(layer, "target"):
        layer(x)
    layer.eval()(x)
    layer = DomainBatchNorm1d(3, domains=CAMERAS).eval()
    with pytest.raises(ValueError, match=r"no 'target' to evaluate unasked: name one with use_domain\(model, 'gate'\)"):
        layer(x)
    with pytest.raises(ValueError, match=r"which of the 4 rows belong to .*domain=index"):
        layer.train()(x)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((2, 2), "has the domains 'gate', 'hall' or 'yard', but got 2 batches"),
        ((), "but got 0 batches"),
        ((2, 0, 3), "got 2 gate, 0 hall and 3 yard rows: .*domain=index"),
    ],
)
def test_batches_that_do_not_fit_the_layers_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        forward_domains(DomainBatchNorm1d(3, domains=CAMERAS), *(draw(n, 3) for n in batches))


def test_a_network_without_domain_layers_takes_any_number():
    parts = [draw(n, 3) for n in (1, 2, 3)]
    for part, x in zip(forward_domains(nn.Identity(), *parts), parts, strict=True):
        assert_close(part, x)
    with pytest.raises(ValueError, match="got no batch"):
        forward_domains(nn.Identity())
    with pytest.raises(ValueError, match=r"0 rows \(3,\) and 2 rows \(4,\) differ"):
        forward_domains(nn.Identity(), draw(2, 3), draw(2, 3), draw(2, 4))


# Interleaved rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DomainBatchNorm1d, DomainWhitening1d])
def test_interleaved_rows_are_the_batches_in_another_order(cls):
    parts = [draw(n, 4, seed=n) for n in (9, 8, 7)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0] * 9 + [1] * 8 + [2] * 7)[order]
    x = torch.cat(parts)[order].requires_grad_()
    layer, same = (cls(4, domains=3, dtype=torch.float64) for _ in range(2))
    got, want = forward_domains(layer, x, domain=index), torch.cat(forward_domains(same, *parts))
    assert_close(got, want[order])
    assert_close(layer.running_mean, same.running_mean)
    got.pow(3).sum().backward()
    leaves = [part.requires_grad_() for part in parts]
    torch.cat(forward_domains(same, *leaves)).pow(3).sum().backward()
    assert_close(x.grad, torch.cat([leaf.grad for leaf in leaves])[order])
    layer.eval()
    got = forward_domains(layer, x, domain=index.tolist())
    for row in range(3):
        assert_close(got[index == row], of(layer, row, x[index == row]))


def test_a_domain_may_be_absent_from_interleaved_rows():
    layer = DomainBatchNorm1d(3, domains=CAMERAS)
    x = draw(5, 3).float()
    y = forward_domains(layer, x, domain=torch.tensor([2, 0, 2, 0, 2]))
    assert layer.num_batches_tracked.tolist() == [1, 0, 1]
    assert_close(y[[1, 3]], nn.BatchNorm1d(3)(x[[1, 3]]))
    mixing = AutoDIAL1d(3)
    with torch.no_grad():
        mixing.alpha.fill_(0.7)
    alone = copy.deepcopy(mixing)
    assert_close(forward_domains(mixing, x, domain=torch.ones(5, dtype=torch.long)), of(alone, "target", x))


def test_nested_outputs_return_in_the_order_of_the_rows():
    x = draw(5, 3)
    net = nn.Identity()
    net.register_forward_hook(lambda module, args, out: {"a": (out, out + 1), "b": None})
    out = forward_domains(net, x, domain=torch.tensor([1, 0, 2, 0, 1], dtype=torch.int32))
    assert_close(out["a"][1], x + 1)
    assert out["b"] is None


@pytest.mark.parametrize(
    ("rows", "index", "message"),
    [
        ([4], torch.zeros(3, dtype=torch.long), r"got 1 batches of 4 rows and \(3,\) of torch.int64"),
        ([4], torch.zeros(4), "torch.float32"),
        ([4], torch.zeros(4, dtype=torch.bool), "torch.bool"),
        ([4], torch.zeros(4, 1, dtype=torch.long), r"\(4, 1\)"),
        ([2, 2], torch.zeros(4, dtype=torch.long), "got 2 batches of 2, 2 rows"),
        ([4], torch.tensor([0, 1, 2, 3]), "numbers from 0 to 3, but DomainBatchNorm1d has 3 domains, 'gate'"),
        ([4], torch.tensor([0, 1, -1, 2]), "numbers from -1 to 2"),
        ([0], torch.zeros(0, dtype=torch.long), "without rows"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(rows, index, message):
    layer = DomainBatchNorm1d(3, domains=CAMERAS)
    with pytest.raises(ValueError, match=message):
        forward_domains(layer, *(draw(n, 3) for n in rows), domain=index)


# Who knows it ------------------------------------------------------------------------------------------------------


def stored(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), stored])
def test_a_copy_made_inside_does_not_inherit_the_domain(copier):
    layer, x = apart()
    default = layer(x)
    with use_domain(layer, "source"):
        twin = copier(nn.Sequential(layer))
        assert_close(twin(x), default, rtol=0, atol=0)
        assert not torch.allclose(layer(x), default)


def test_a_second_thread_does_not_inherit_the_domain():
    layer, x = apart()
    default, seen, go, stop = layer(x), [], threading.Event(), threading.Event()

    def work():
        go.wait()
        while not stop.is_set():
            seen.append(layer(x))

    thread = threading.Thread(target=work)
    thread.start()
    with use_domain(layer, "source"):
        go.set()
        while len(seen) < 50:
            layer(x)
    stop.set()
    thread.join()
    assert all(torch.equal(y, default) for y in seen)


def test_tasks_do_not_disturb_each_other():
    layer, x = apart()
    want = {domain: of(layer, domain, x) for domain in ("source", "target")}

    async def one(domain):
        for _ in range(20):
            with use_domain(layer, domain):
                await asyncio.sleep(0)
                assert torch.equal(layer(x), want[domain])

    async def both():
        await asyncio.gather(one("source"), one("target"))

    asyncio.run(both())


def test_blocks_nest_and_an_error_ends_them():
    layer, x = apart()
    source, target = of(layer, "source", x), of(layer, "target", x)
    with use_domain(layer, "source"):
        with pytest.raises(ValueError, match="expected 3 channels"), use_domain(layer, "target"):
            layer(torch.cat([layer(x) - target, x], 1))
        forward_domains(layer, x, x)
        assert torch.equal(layer(x), source)
    assert torch.equal(layer(x), target)
    assert not SPLITS.get()


def test_blocks_of_two_models_may_overlap_in_any_order():
    (one, x), (two, _) = apart(), apart()

    def block(model):
        with use_domain(model, "source"):
            yield

    first, second = block(one), block(two)
    next(first)
    next(second)
    next(first, None)  # ends before the block that began later
    assert torch.equal(two(x), of(two, "source", x))
    next(second, None)
    assert not SPLITS.get()
    assert torch.equal(one(x), of(one, "target", x))


def test_a_layer_of_two_models_is_one_layer():
    layer, x = apart()
    a, b = nn.Sequential(layer), nn.Sequential(nn.Identity(), layer)
    with use_domain(a, "source"):
        assert_close(b(x), of(layer, "source", x), rtol=0, atol=0)


def test_a_wrapper_finds_its_layers():
    layer, x = apart()
    source = of(layer, "source", x)
    for wrapper in (nn.DataParallel(layer), torch.compile(layer, backend="eager")):
        with use_domain(wrapper, "source"):
            assert_close(wrapper(x), source, rtol=0, atol=0)


def test_replicas_take_the_domain_with_them_into_their_threads():
    layer, x = apart()
    source, seen = of(layer, "source", x), []
    with use_domain(layer, "source"):
        replica = layer._replicate_for_data_parallel()
    # What torch.nn.parallel.replicate does next.
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        setattr(replica, name, value)
    thread = threading.Thread(target=lambda: seen.append(replica(x)))
    thread.start()
    thread.join()
    assert_close(seen[0], source, rtol=0, atol=0)
    assert not torch.equal(layer(x), source)


# Gradient checkpoints ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Dropout, so that the repetition must find its random numbers; the last ReLU saves what follows the layer."""

    def __init__(self, cls, p=0.25, **options):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(p), cls(4, **options), nn.Tanh())

    def forward(self, x):
        return self.layers(x)


class Net(nn.Module):
    def __init__(self, cls, how=None, p=0.25, times=1, **options):
        super().__init__()
        torch.manual_seed(1)
        self.block, self.head, self.how, self.times = (
            Block(cls, p, **options).double(),
            nn.Linear(4, 2).double(),
            how,
            times,
        )
        with torch.no_grad():
            for gate in gate_parameters(self):
                gate.fill_(0.7)

    @property
    def norm(self):
        return self.block.layers[2]

    def forward(self, x):
        for _ in range(self.times):
            x = self.block(x) if self.how is None else checkpoint(self.block, x, **self.how)
        return self.head(x)


KINDS = [{"use_reentrant": True}, {"use_reentrant": False}]


def same_as_without(cls, how, run, train=True, **options):
    """Gradients and running rows with a checkpoint and without."""
    results = []
    for each in (None, how):
        net = Net(cls, each, **options)
        if not train:
            forward_domains(net.block, draw(6, 4), draw(5, 4, seed=1) + 3)
            net.eval()
        torch.manual_seed(2)
        run(net)
        results.append([p.grad for p in net.parameters()] + list(net.buffers()))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, rtol=1e-10, atol=1e-12)


def loss(*outputs):
    return sum((y**3).sum() * (d + 1) for d, y in enumerate(outputs))


@pytest.mark.parametrize("how", KINDS, ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("cls", VECTOR_LAYERS)
class TestCheckpoint:
    @pytest.mark.parametrize("times", [1, 2])
    def test_unequal_parts(self, cls, how, times):
        """Also the same block twice in one forward pass."""

        def run(net):
            xs, xt = draw(6, 4).requires_grad_(), draw(4, 4, seed=1)
            loss(*forward_domains(net, xs, xt)).backward()
            assert net.norm.num_batches_tracked.tolist() == [times, times]

        same_as_without(cls, how, run, times=times)

    def test_one_domain_after_the_other(self, cls, how):
        """The source's repetition comes when the target's row, which stood for the absent domain, has moved."""

        def run(net):
            outputs = []
            for domain in ("source", "target", "source"):
                with use_domain(net, domain):
                    outputs.append(net(draw(6, 4, seed=len(outputs)).requires_grad_()))
            loss(*outputs).backward()
            assert net.norm.num_batches_tracked.tolist() == [2, 1]

        same_as_without(cls, how, run)

    def test_backward_inside_another_block(self, cls, how):
        def run(net):
            with use_domain(net, "source"):
                y = net(draw(6, 4).requires_grad_())
            with use_domain(net, "target"):
                loss(y).backward()
            assert net.norm.num_batches_tracked.tolist() == [1, 0]

        same_as_without(cls, how, run)

    def test_backward_in_another_thread(self, cls, how):
        def run(net):
            total = loss(*forward_domains(net, draw(6, 4).requires_grad_(), draw(4, 4, seed=1)))
            thread = threading.Thread(target=total.backward)
            thread.start()
            thread.join()

        same_as_without(cls, how, run)

    def test_splits_that_change_from_pass_to_pass(self, cls, how):
        """Three passes of ten rows, one backward for all."""

        def run(net):
            total = 0
            for step, n in enumerate((6, 3, 5)):
                xs, xt = draw(n, 4, seed=step).requires_grad_(), draw(10 - n, 4, seed=step + 5)
                total = total + loss(*forward_domains(net, xs, xt))
            total.backward()

        same_as_without(cls, how, run)

    def test_evaluation(self, cls, how):
        """Gradients in evaluation mode: of the input, or with frozen statistics."""

        def run(net):
            with torch.no_grad():
                of(net.block, "target", draw(6, 4, seed=7))
            with use_domain(net, "source"):
                y = net(draw(6, 4).requires_grad_())
            loss(y).backward()

        same_as_without(cls, how, run, train=False)

    def test_a_gradient_that_is_repeated(self, cls, how):
        def run(net):
            total = loss(*forward_domains(net, draw(6, 4).requires_grad_(), draw(4, 4, seed=1)))
            total.backward(retain_graph=True)
            total.backward()

        same_as_without(cls, how, run)


@pytest.mark.parametrize("how", KINDS, ids=["reentrant", "not reentrant"])
def test_checkpoints_without_the_random_state_and_with_interleaved_rows(how):
    def run(net):
        x = draw(9, 4).requires_grad_()
        loss(forward_domains(net, x, domain=torch.tensor([0, 2, 1, 2, 0, 0, 2, 1, 1]))).backward()

    same_as_without(DomainBatchNorm1d, {**how, "preserve_rng_state": False}, run, p=0.0, domains=CAMERAS)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_nested_checkpoints(inner, outer):
    class Twice(nn.Module):
        def __init__(self, cls, p, **options):
            super().__init__()
            self.block = Block(cls, p, **options)
            self.layers = self.block.layers
            self.inside = False

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=inner) if self.inside else self.block(x)

    results = []
    for nested in (False, True):
        torch.manual_seed(1)
        block = Twice(AutoDIAL1d, 0.25).double()
        block.inside = nested
        with torch.no_grad():
            block.layers[2].alpha.fill_(0.7)
        net = nn.Sequential(block)
        if nested:
            net.forward = lambda x, block=block: checkpoint(block, x, use_reentrant=outer)
        torch.manual_seed(2)
        loss(*forward_domains(net, draw(6, 4).requires_grad_(), draw(4, 4, seed=1))).backward()
        results.append([p.grad for p in block.parameters()] + list(block.buffers()))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("how", KINDS, ids=["reentrant", "not reentrant"])
def test_what_a_checkpoint_cannot_tell_is_an_error(how):
    net, x = Net(DomainBatchNorm1d, how, p=0.0), draw(10, 4).requires_grad_()
    total = loss(*forward_domains(net, x[:6], x[6:]), *forward_domains(net, x[:4], x[4:]))
    with pytest.raises(ValueError, match=r"different statistics \(6 source and 4 target rows; 4 source and 6 target"):
        total.backward()
    net = Net(DomainBatchNorm1d, how, p=0.0)
    total = loss(*forward_domains(net, x[:6], x[6:]))
    with torch.no_grad():
        for seed in range(PASSES):
            of(net.block, "source", draw(10, 4, seed=seed + 1))
    with pytest.raises(ValueError, match=f"none of its latest {PASSES} passes"):
        total.backward()


@pytest.mark.parametrize("how", KINDS, ids=["reentrant", "not reentrant"])
def test_a_pass_that_is_forgotten_is_an_error_inside_a_block_too(how):
    net, x = Net(DomainBatchNorm1d, how, p=0.0), draw(10, 4).requires_grad_()
    total = loss(*forward_domains(net, x[:6], x[6:]))
    net.norm.membership.passes.clear()
    with use_domain(net, "source"), pytest.raises(ValueError, match="none of its latest"):
        total.backward()


@pytest.mark.parametrize("how", KINDS, ids=["reentrant", "not reentrant"])
def test_forward_domains_inside_a_checkpoint_counts_once(how):
    net, x = Net(DomainBatchNorm1d, p=0.0), draw(10, 4).requires_grad_()
    loss(*checkpoint(lambda x: forward_domains(net, x[:6], x[6:]), x, **how)).backward()
    assert net.norm.num_batches_tracked.tolist() == [1, 1]


def test_a_block_inside_the_backward_is_a_pass_of_its_own():
    layer, x = DomainBatchNorm1d(4), draw(6, 4).float().requires_grad_()
    y = x * 2
    y.register_hook(lambda grad: forward_domains(layer, grad + x.detach(), x.detach())[0])
    y.sum().backward()
    assert layer.num_batches_tracked.tolist() == [1, 1]


# Compilers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_k_domains_compile_as_one_graph_for_several_splits():
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    layer, plain = (DomainBatchNorm1d(3, domains=4, dtype=torch.float64) for _ in range(2))
    fast = torch.compile(nn.Sequential(layer), fullgraph=True, backend=counting)
    for n in range(2, 11):
        parts = [draw(size, 3, seed=size) for size in (n, 12, 15 - n, 30 + n)]
        assert_close(forward_domains(fast, *parts), forward_domains(plain, *parts))
    assert len(graphs) <= 3
    assert_close(layer.running_var, plain.running_var)
    for name in ("0", "3"):
        assert_close(of(fast.eval(), name, draw(5, 3)), of(plain.eval(), name, draw(5, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_export_takes_the_domain_of_the_block(strict):
    layer, x = apart()
    with use_domain(layer, "source"):
        program = torch.export.export(nn.Sequential(layer), (x,), strict=strict)
    assert_close(program.module()(x), of(layer, "source", x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_takes_the_domain_of_the_block():
    torch.manual_seed(0)
    layer = TransNorm2d(3)
    x = draw(6, 3, 2, 2).float()
    forward_domains(layer, x, x + 1)
    layer.eval()
    with use_domain(layer, "source"):
        traced = torch.jit.trace(layer, (x,))
    assert_close(traced(x), of(layer, "source", x))
