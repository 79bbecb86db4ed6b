"""Two processes with synchronised statistics are one process with the joined batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.testing import assert_close

from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    convert_norm,
    forward_domains,
    gate_parameters,
    use_domain,
)

LAYERS = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]
ROWS = ((4, 3), (2, 5))  # source and target rows of each process: unequal everywhere


def data():
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64) * 2 + 1
    xt = torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64)
    return xs, xt


def build(cls):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).double()
    net = convert_norm(net, cls, sync=True)
    with torch.no_grad():
        for gate in gate_parameters(net):
            gate.fill_(0.8)
    return net


def loss(ys, yt):
    """A sum over rows, so that the joined loss is the sum over processes."""
    return (ys.square() * ys).sum() + (yt.sin() * yt.detach().roll(1, 2)).sum()


def result(net):
    return {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())


def interleaved():
    """Rows of three domains: the first process lacks one, the second has one alone; none has the last."""
    xs, xt = data()
    return (xs, torch.tensor([1, 0, 2, 0, 1, 0])), (xt, torch.full((8,), 1))


def three_domains(x, index, sync=False):
    """Output, gradient of a sum over rows, and state."""
    layer = DomainBatchNorm2d(2, domains=4, sync=sync, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    y = forward_domains(layer, leaf, domain=index)
    (y.square() * y).sum().backward()
    return y.detach(), leaf.grad, dict(layer.named_buffers())


def work(rank, init, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    xs, xt = (x.split(sizes)[rank] for x, sizes in zip(data(), zip(*ROWS, strict=True), strict=True))
    out = {}
    for cls in LAYERS:
        net = build(cls)
        parallel = nn.parallel.DistributedDataParallel(net)
        leaf = xs.clone().requires_grad_()
        loss(*forward_domains(parallel, leaf, xt)).backward()
        out[cls.__name__] = {name: t.clone() for name, t in result(net).items()} | {"input": leaf.grad}
        # One process has source rows only, the other target rows only: both see both domains' statistics.
        alone = build(cls)
        with use_domain(alone, ("source", "target")[rank]):
            y = alone((xs, xt)[rank])
        out[cls.__name__]["alone"] = y.detach()
        out[cls.__name__]["alone_mean"] = alone[1].running_mean.clone()
        # Only source rows anywhere: the target's row stays.
        with use_domain(alone, "source"):
            alone(xs)
        out[cls.__name__]["counts"] = alone[1].num_batches_tracked.clone()
    out["three"] = three_domains(*interleaved()[rank], sync=True)
    torch.save(out, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(f"file://{folder}/init", str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("cls", LAYERS)
def test_statistics_and_gradients_equal_the_joined_batch(ranks, cls):
    xs, xt = data()
    net, leaf = build(cls), xs.clone().requires_grad_()
    loss(*forward_domains(net, leaf, xt)).backward()
    for rank in (0, 1):
        got = ranks[rank][cls.__name__]
        for name, want in result(net).items():
            # DistributedDataParallel averages the gradients over the two processes.
            assert_close(
                got[name], want / 2 if name in dict(net.named_parameters()) else want, msg=lambda m, n=name: f"{n}: {m}"
            )
    rows = torch.cat([ranks[rank][cls.__name__]["input"] for rank in (0, 1)])
    assert_close(rows, leaf.grad)


@pytest.mark.parametrize("cls", LAYERS)
def test_a_process_may_hold_one_domain_only(ranks, cls):
    xs, xt = data()
    first, second = xs[: ROWS[0][0]], xt[ROWS[0][1] :]
    net = build(cls)
    want = forward_domains(net, first, second)
    for rank in (0, 1):
        assert_close(ranks[rank][cls.__name__]["alone"], want[rank].detach())
        assert_close(ranks[rank][cls.__name__]["alone_mean"], net[1].running_mean)
        assert ranks[rank][cls.__name__]["counts"].tolist() == [3, 2]  # conversion counts as the first


def test_interleaved_rows_of_several_domains_equal_the_joined_batch(ranks):
    (first, i), (second, j) = interleaved()
    y, grad, state = three_domains(torch.cat([first, second]), torch.cat([i, j]))
    for rank, rows in enumerate((slice(0, 6), slice(6, None))):
        got_y, got_grad, got_state = ranks[rank]["three"]
        assert_close((got_y, got_grad, got_state), (y[rows], grad[rows], state))
    assert state["num_batches_tracked"].tolist() == [1, 1, 1, 0]
