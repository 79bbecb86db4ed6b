"""What theory says about MMD, its estimators and its joint form."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from deeptransfer.discrepancy import (
    GaussianKernels,
    JointMMD,
    MultiKernelMMD,
    gaussian_kernel,
    linear_mmd2,
    linear_time_mmd2,
    mean_squared_distance,
    mmd2,
    mmd_test,
    optimal_kernel_weights,
    witness,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20)
@given(n=st.integers(1, 12), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_biased_mmd_of_a_sample_with_itself_is_zero(n, d, seed):
    x = normal(n, d, seed=seed)
    for value in (mmd2(x, x), MultiKernelMMD()(x, x), JointMMD()([x, x], [x, x]), linear_mmd2(x, x)):
        assert abs(value.item()) <= 1e-15


def test_unbiased_mmd_has_mean_zero_under_the_null_and_negative_values():
    values = torch.stack([mmd2(normal(10, 2, seed=s), normal(8, 2, seed=10_000 + s), 1.0, estimator="unbiased")
                          for s in range(1000)])  # fmt: skip
    assert abs(values.mean()) < 3 * values.std() / 1000**0.5
    assert 0.3 < (values < 0).double().mean() < 0.8
    biased = torch.stack([mmd2(normal(10, 2, seed=s), normal(8, 2, seed=10_000 + s), 1.0) for s in range(100)])
    assert (biased > 0).all()


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_one_kernel_of_the_family_is_mmd_with_that_bandwidth(estimator):
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    sigma2 = 0.5 * mean_squared_distance(x, y)
    one = MultiKernelMMD(multipliers=(1.0,), estimator=estimator)(x, y)
    assert one.item() == pytest.approx(mmd2(x, y, sigma2.item(), estimator=estimator).item(), abs=1e-15)
    assert one.item() == pytest.approx(mmd2(x, y, estimator=estimator).item(), abs=1e-15)


def test_the_family_is_the_weighted_mean_of_its_kernels():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    weights, multipliers = (0.5, 0.3, 0.2), (0.5, 1.0, 3.0)
    singly = [MultiKernelMMD(multipliers=(m,))(x, y) for m in multipliers]
    expected = sum(w * value for w, value in zip(weights, singly, strict=True))
    assert MultiKernelMMD(multipliers, weights)(x, y).item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_joint_mmd_of_one_layer_is_multi_kernel_mmd(estimator):
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    joint = JointMMD([GaussianKernels()], estimator)([x], [y])
    assert joint.item() == pytest.approx(MultiKernelMMD(estimator=estimator)(x, y).item(), abs=1e-16)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_joint_mmd_with_a_constant_softmax_is_multi_kernel_mmd(estimator):
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    p = torch.full((7, 4), 0.25, dtype=torch.float64)
    joint = JointMMD(estimator=estimator)([x, p], [y, p[:5]])
    assert joint.item() == pytest.approx(MultiKernelMMD(estimator=estimator)(x, y).item(), abs=1e-15)


def test_joint_mmd_sees_a_dependence_that_the_layers_apart_do_not():
    """Features and predictions have the same margins in both domains; only their pairing differs."""
    f = torch.tensor([[0.0], [1.0]] * 8, dtype=torch.float64)
    same, crossed = f.clone(), 1 - f
    assert MultiKernelMMD()(f, f).abs() < 1e-15
    assert MultiKernelMMD()(same, crossed).abs() < 1e-15
    assert JointMMD()([f, same], [f, crossed]) > 0.05


def test_linear_time_statistic_averaged_over_pairings_is_the_unbiased_one():
    """All permutations of both samples: not a sample of them, so the identity is exact."""
    x, y = normal(4, 2), normal(4, 2, seed=1) + 0.5
    orders = [list(order) for order in itertools.permutations(range(4))]
    values = [linear_time_mmd2(x[a], y[b], 0.8) for a in orders for b in orders]
    expected = mmd2(x, y, 0.8, estimator="unbiased")
    assert torch.stack(values).mean().item() == pytest.approx(expected.item(), abs=1e-14)
    assert torch.stack(values).std() > 0.01


def test_linear_time_leaves_out_the_rows_beyond_the_last_quadruple():
    x, y = normal(9, 2), normal(7, 2, seed=1)
    assert linear_time_mmd2(x, y, 0.8).item() == linear_time_mmd2(x[:6], y[:6], 0.8).item()


def test_swapping_the_samples_changes_nothing():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    for value in (mmd2, MultiKernelMMD(estimator="unbiased"), linear_mmd2):
        assert value(x, y).item() == pytest.approx(value(y, x).item(), abs=1e-15)


def test_the_following_bandwidth_makes_the_family_free_of_scale_and_origin():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    for value in (mmd2, MultiKernelMMD(), linear_time_mmd2, lambda x, y: linear_mmd2(x, y, "spread")):
        assert value(100 * x + 7, 100 * y + 7).item() == pytest.approx(value(x, y).item(), abs=1e-13)


def test_biased_mmd_is_the_squared_distance_of_means_for_a_wide_kernel():
    """1 − k ≈ d²/(2σ²): σ²·MMD² tends to the squared distance of the means."""
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    assert (1e4 * mmd2(x, y, 1e4)).item() == pytest.approx(linear_mmd2(x, y).item(), rel=1e-2)


def test_witness_averages_to_the_biased_mmd():
    x, y = normal(7, 2), normal(5, 2, seed=1) + 1
    difference = witness(x, x, y, [0.5, 2.0]).mean() - witness(y, x, y, [0.5, 2.0]).mean()
    assert difference.item() == pytest.approx(mmd2(x, y, [0.5, 2.0]).item(), abs=1e-14)


def test_moving_along_the_gradient_brings_the_samples_together():
    x, y = normal(30, 2).requires_grad_(), normal(30, 2, seed=1) + 2
    (gradient,) = torch.autograd.grad(mmd2(x, y, 2.0), x)
    assert mmd2(x - 20 * gradient, y, 2.0) < 0.8 * mmd2(x, y, 2.0)
    assert (gradient.mean(0) < 0).all()


def test_kernel_of_equal_rows_is_one_and_of_far_rows_is_zero():
    x = normal(4, 3)
    torch.testing.assert_close(gaussian_kernel(x, x, 1.0).diagonal(), torch.ones(4, dtype=x.dtype))
    assert (gaussian_kernel(x, x + 1e3, 1.0) == 0).all()


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_p_values_are_uniform_under_the_null(estimator):
    """300 tests with P = Q and unequal sizes; a p-value on the grid k/100 is uniform on it."""
    p = [
        mmd_test(
            normal(12, 2, seed=s), normal(9, 2, seed=10_000 + s), estimator=estimator, permutations=99, seed=s
        ).p_value
        for s in range(300)
    ]
    jitter = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 100
    assert stats.kstest(torch.tensor(p, dtype=torch.float64).sub(jitter).numpy(), "uniform").pvalue > 0.01
    assert sum(value <= 0.05 for value in p) / 300 < 0.09


def test_weights_learned_on_the_tested_rows_make_p_values_too_small():
    """The reason to learn β on other rows: among many narrow kernels one fits the noise of any sample."""
    sigma2s = [2.0**k for k in range(-8, 6)]
    inside = outside = 0
    for s in range(150):
        x, y = normal(12, 1, seed=s), normal(12, 1, seed=10_000 + s)
        other = normal(12, 1, seed=20_000 + s), normal(12, 1, seed=30_000 + s)
        inside += mmd_test(x, y, sigma2s, optimal_kernel_weights(x, y, sigma2s), "unbiased", 99, s).p_value <= 0.1
        outside += mmd_test(x, y, sigma2s, optimal_kernel_weights(*other, sigma2s), "unbiased", 99, s).p_value <= 0.1
    assert outside / 150 < 0.17
    assert inside > outside


@settings(max_examples=25)
@given(
    n=st.integers(2, 9),
    m=st.integers(2, 9),
    d=st.integers(1, 5),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-3, 3),
    estimator=st.sampled_from(["biased", "unbiased"]),
    seed=st.integers(0, 99),
)
def test_properties_of_the_multi_kernel_mmd(n, m, d, scale, shift, estimator, seed):
    """Symmetric, ≥ 0 if biased, free of the order of rows, of scale, of origin and of a rotation."""
    x, y = normal(n, d, seed=seed), normal(m, d, seed=100 + seed) + shift
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(normal(d, d, seed=200 + seed))[0]
    joint = JointMMD([GaussianKernels(), GaussianKernels()], estimator)
    losses = [
        MultiKernelMMD(estimator=estimator),
        lambda x, y: mmd2(x, y, estimator=estimator),
        lambda x, y: joint([x, x[:, :1]], [y, y[:, :1]]),
        lambda x, y: linear_mmd2(x, y, "spread"),
    ]
    for i, loss in enumerate(losses):
        value = loss(x, y).item()
        if estimator == "biased" or i == 3:
            assert value >= -1e-14
        a, b = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
        others = [loss(y, x), loss(x[a], y[b]), loss(scale * x, scale * y)]
        if i != 2:  # its second layer is the first coordinate alone
            others += [loss(x @ rotation, y @ rotation), loss(x + 5, y + 5)]
        for other in others:
            assert other.item() == pytest.approx(value, abs=1e-12)


@settings(max_examples=20)
@given(n=st.integers(1, 6), m=st.integers(1, 6), power=st.integers(-30, 30), seed=st.integers(0, 99))
def test_p_value_does_not_depend_on_the_scale_of_the_data(n, m, power, seed):
    x, y = normal(n, 2, seed=seed), normal(m, 2, seed=100 + seed) + 1
    one, other = (mmd_test(s * x, s * y, permutations=60).p_value for s in (1.0, 10.0**power))
    assert one == other
    assert 1 / 61 <= one <= 1
