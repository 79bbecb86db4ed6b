"""Discrepancies against slow float64 NumPy versions, their gradients, their numerics, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import reference_discrepancy as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deeptransfer.discrepancy import (
    MULTIPLIERS,
    GaussianKernels,
    JointMMD,
    MultiKernelMMD,
    gaussian_kernel,
    linear_mmd2,
    linear_time_mmd2,
    mean_squared_distance,
    median_squared_distance,
    mmd2,
    mmd_test,
    optimal_kernel_weights,
    squared_distances,
    witness,
)

UNIFORM = [0.2] * 5


def sample(n: int, m: int, d: int, seed: int = 0, shift: float = 0.5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(m, d, generator=generator, dtype=torch.float64) + shift
    return x.to(dtype), y.to(dtype)


def family(x: Tensor, y: Tensor, multipliers=MULTIPLIERS) -> list[float]:
    spread = reference.mean_distance2(np.concatenate((x.numpy(), y.numpy())))
    return [m * spread / 2 for m in multipliers]


def mixture(sigma2s, weights):
    return lambda a, b: reference.mixture(a, b, sigma2s, weights)


# ------------------------------------------------------------------------------------------------------ distances


@settings(max_examples=25)
@given(
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    d=st.integers(1, 5),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_distances_equal_the_loop(n, m, d, offset, scale, seed):
    x, y = (scale * t + offset for t in sample(n, m, d, seed))
    loop = np.array([[((a - b) ** 2).sum() for b in y.numpy()] for a in x.numpy()])
    np.testing.assert_allclose(squared_distances(x, y).numpy(), loop, rtol=1e-9, atol=1e-9 * scale**2)
    within = np.array([[((a - b) ** 2).sum() for b in x.numpy()] for a in x.numpy()])
    np.testing.assert_allclose(squared_distances(x).numpy(), within, rtol=1e-9, atol=1e-9 * scale**2)


def test_float32_distances_survive_a_large_mean():
    """Without centring, the Gram form of rows around 1000 has no digit left."""
    x, y = sample(40, 30, 8)
    exact = squared_distances(x, y)
    shifted = squared_distances((x + 1000).float(), (y + 1000).float())
    # rounding the rows themselves to float32 costs 6e-5 a coordinate
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-3, atol=1e-3)


def test_distances_within_a_sample_have_an_exactly_zero_diagonal():
    for dtype in (torch.float32, torch.float64):
        x, _ = sample(57, 1, 33, dtype=dtype)
        assert (squared_distances(x + 100).diagonal() == 0).all()


def test_distances_of_nearly_coinciding_rows_are_never_negative():
    """Rounding of the Gram form would take the distances of the pairs below zero, and kernels above one."""
    x, _ = sample(200, 1, 33, dtype=torch.float32)
    assert (squared_distances(torch.cat((x, x + 1e-5))) >= 0).all()
    assert (squared_distances(x, x + 1e-5) >= 0).all()
    assert (gaussian_kernel(x, x + 1e-5, 1e-3) <= 1).all()


def test_gradient_of_distances_is_right_where_rows_coincide():
    x, _ = sample(4, 1, 3)
    x = torch.cat((x, x[:2])).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, x)
    assert torch.autograd.gradgradcheck(squared_distances, x)
    gradient = torch.autograd.grad(squared_distances(x)[0, 4], x)[0]
    assert (gradient == 0).all()


def test_mean_and_median_distance_equal_the_loop():
    x, y = sample(5, 4, 3)
    z = np.concatenate((x.numpy(), y.numpy()))
    pairs = [((z[i] - z[j]) ** 2).sum() for i in range(9) for j in range(i)]
    assert mean_squared_distance(x, y).item() == pytest.approx(np.mean(pairs), rel=1e-12)
    assert median_squared_distance(x, y).item() == pytest.approx(np.percentile(pairs, 50, method="lower"), rel=1e-12)
    x.requires_grad_()
    assert not mean_squared_distance(x, y).requires_grad
    assert not median_squared_distance(x, y).requires_grad


def test_median_distance_ignores_an_outlier():
    x, y = sample(10, 10, 3)
    far = torch.cat((x, torch.full((1, 3), 1e3, dtype=x.dtype)))
    assert median_squared_distance(far, y) < 2 * median_squared_distance(x, y)
    assert mean_squared_distance(far, y) > 100 * mean_squared_distance(x, y)


# ------------------------------------------------------------------------------------------------ against the loops


@settings(max_examples=25)
@given(
    n=st.integers(2, 6),
    m=st.integers(2, 6),
    d=st.integers(1, 4),
    sigma2=st.floats(0.05, 20),
    estimator=st.sampled_from(["biased", "unbiased"]),
    seed=st.integers(0, 99),
)
def test_mmd2_equals_the_loop(n, m, d, sigma2, estimator, seed):
    x, y = sample(n, m, d, seed)
    expected = reference.mmd2(x.numpy(), y.numpy(), mixture([sigma2], [1.0]), estimator)
    assert mmd2(x, y, sigma2=sigma2, estimator=estimator).item() == pytest.approx(expected, abs=1e-12)


def test_gaussian_kernel_equals_the_loop():
    x, y = sample(4, 3, 2)
    expected = [[reference.gaussian(a, b, 0.7) for b in y.numpy()] for a in x.numpy()]
    np.testing.assert_allclose(gaussian_kernel(x, y, 0.7).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_multi_kernel_equals_the_loop(estimator):
    x, y = sample(6, 5, 3)
    weights = [0.1, 0.0, 0.2, 0.3, 0.4]
    for beta in (None, weights):
        expected = reference.mmd2(x.numpy(), y.numpy(), mixture(family(x, y), beta or UNIFORM), estimator)
        assert MultiKernelMMD(weights=beta, estimator=estimator)(x, y).item() == pytest.approx(expected, abs=1e-8)
    # uniform weights are exact whatever the format of the buffer
    expected = reference.mmd2(x.numpy(), y.numpy(), mixture(family(x, y), UNIFORM), estimator)
    assert MultiKernelMMD(estimator=estimator)(x, y).item() == pytest.approx(expected, abs=1e-14)


def test_multi_kernel_with_fixed_bandwidths_equals_the_loop():
    x, y = sample(6, 5, 3)
    expected = reference.mmd2(x.numpy(), y.numpy(), mixture([0.5, 3.0], [0.25, 0.75]))
    assert MultiKernelMMD(sigma2=[0.5, 3.0], weights=[0.25, 0.75])(x, y).item() == pytest.approx(expected, abs=1e-14)
    assert mmd2(x, y, sigma2=[0.5, 3.0], weights=[0.25, 0.75]).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_joint_mmd_equals_the_loop(estimator):
    fx, fy = sample(5, 4, 3)
    px, py = (t.softmax(1) for t in sample(5, 4, 2, seed=1))
    sigma2s = family(fx, fy)

    def kernel(a, b):
        return reference.mixture(a[0], b[0], sigma2s, UNIFORM) * reference.gaussian(a[1], b[1], 1.69 / 2)

    expected = reference.mmd2(
        list(zip(fx.numpy(), px.numpy(), strict=True)),
        list(zip(fy.numpy(), py.numpy(), strict=True)),
        kernel,
        estimator,
    )
    assert JointMMD(estimator=estimator)([fx, px], [fy, py]).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 5), (2, 9)])
def test_linear_time_equals_the_loop(n, m):
    x, y = sample(n, m, 3)
    expected = reference.linear_time(x.numpy(), y.numpy(), mixture([0.5, 3.0], [0.25, 0.75]))
    assert linear_time_mmd2(x, y, [0.5, 3.0], [0.25, 0.75]).item() == pytest.approx(expected, abs=1e-14)
    expected = reference.linear_time(x.numpy(), y.numpy(), mixture(family(x, y, [1.0]), [1.0]))
    assert linear_time_mmd2(x, y).item() == pytest.approx(expected, abs=1e-14)


def test_linear_mmd2_equals_the_formula_and_its_normalisations_do_what_they_say():
    x, y = sample(5, 4, 3)
    raw = ((x.numpy().mean(0) - y.numpy().mean(0)) ** 2).sum()
    assert linear_mmd2(x, y).item() == pytest.approx(raw, rel=1e-12)
    assert linear_mmd2(x, y, "width").item() == pytest.approx(raw / 3, rel=1e-12)
    assert linear_mmd2(x, y, "spread").item() == pytest.approx(
        raw / reference.mean_distance2(np.concatenate((x, y))), rel=1e-12
    )
    assert linear_mmd2(7 * x, 7 * y).item() == pytest.approx(49 * raw, rel=1e-12)
    wide = [torch.cat((7 * t, 7 * t), 1) for t in (x, y)]
    assert linear_mmd2(*wide, "spread").item() == pytest.approx(linear_mmd2(x, y, "spread").item(), rel=1e-12)


def test_witness_equals_the_loop():
    x, y = sample(5, 4, 2)
    points = sample(3, 1, 2, seed=5)[0]
    for sigma2s in ([0.7], [0.7, 2.0]):
        k = mixture(sigma2s, [1 / len(sigma2s)] * len(sigma2s))
        expected = [
            np.mean([k(p, a) for a in x.numpy()]) - np.mean([k(p, b) for b in y.numpy()]) for p in points.numpy()
        ]
        np.testing.assert_allclose(witness(points, x, y, sigma2s).numpy(), expected, atol=1e-14)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, e: mmd2(x, y, sigma2=[0.5, 2.0], weights=[0.3, 0.7], estimator=e),
        lambda x, y, e: MultiKernelMMD(sigma2=[0.5, 2.0], estimator=e)(x, y),
        lambda x, y, e: JointMMD([GaussianKernels(sigma2=2.0), GaussianKernels(sigma2=0.8)], e)(
            [x, x.softmax(1)], [y, y.softmax(1)]
        ),
        lambda x, y, e: linear_time_mmd2(x, y, sigma2=1.5),
        lambda x, y, e: linear_mmd2(x, y, "width"),
        lambda x, y, e: witness(torch.zeros_like(x[:2]), x, y, 1.5),
        lambda x, y, e: gaussian_kernel(x, y, 1.5),
    ],
    ids=["mmd2", "multi-kernel", "joint", "linear-time", "linear", "witness", "kernel"],
)
def test_gradcheck_with_fixed_bandwidths(loss, estimator):
    x, y = (t.requires_grad_() for t in sample(4, 5, 3))
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, estimator), (x, y))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_gradient_equals_central_differences_of_the_loop_with_the_bandwidth_held(estimator):
    """The batch's own bandwidth carries no gradient: the loop keeps it at the value it had."""
    x, y = sample(4, 3, 2)
    sigma2s = family(x, y)
    expected = reference.central_differences(
        lambda rows: reference.mmd2(rows, y.numpy(), mixture(sigma2s, UNIFORM), estimator), x.numpy()
    )
    x.requires_grad_()
    MultiKernelMMD(estimator=estimator)(x, y).backward()
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_joint_mmd_sends_a_gradient_through_the_softmax_of_both_domains():
    features, logits = sample(6, 6, 3), [t.requires_grad_() for t in sample(6, 6, 4, seed=1)]
    JointMMD()([features[0], logits[0].softmax(1)], [features[1], logits[1].softmax(1)]).backward()
    assert all(t.grad.abs().max() > 1e-4 for t in logits)


# -------------------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 3.3e15, 1e-20])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_no_spread_gives_zero_and_zero_gradients(value, estimator):
    x = torch.full((30, 7), value, requires_grad=True)
    y = torch.full((20, 7), value)
    losses = [
        MultiKernelMMD(estimator=estimator)(x, y),
        mmd2(x, y, estimator=estimator),
        JointMMD(estimator=estimator)([x, x], [y, y]),
        linear_time_mmd2(x, y),
        linear_mmd2(x, y, "spread"),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert (gradient == 0).all()
    assert mean_squared_distance(x, y) == 1
    assert median_squared_distance(x, y) == 1


def test_tiny_spread_stays_finite():
    x = (torch.rand(20, 5) * 1e-18).requires_grad_()
    loss = MultiKernelMMD()(x, torch.rand(20, 5) * 1e-18)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@settings(max_examples=30)
@given(n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 30), offset=st.sampled_from([0.0, 100.0]))
def test_biased_float32_is_never_below_zero_and_zero_for_identical_samples(n, m, d, offset):
    x, y = sample(n, m, d, seed=n + 50 * m, shift=0.0, dtype=torch.float32)
    x, y = x + offset, y + offset
    for loss in (mmd2, MultiKernelMMD()):
        assert loss(x, y).item() >= -1e-6
        assert abs(loss(x, x.clone()).item()) <= 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("loss", [MultiKernelMMD(), mmd2, linear_time_mmd2, linear_mmd2], ids=lambda f: str(f)[:20])
def test_float32_agrees_with_float64(loss):
    x, y = sample(64, 48, 100)
    torch.testing.assert_close(loss(x.float(), y.float()).double(), loss(x, y), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_and_autocast_are_computed_in_float32(dtype):
    x, y = sample(32, 32, 16, dtype=torch.float32)
    exact = MultiKernelMMD()(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = MultiKernelMMD()(x, y)
        distances, kernel = squared_distances(x, y), gaussian_kernel(x, y, 2.0)
    assert under_autocast.dtype == distances.dtype == kernel.dtype == torch.float32
    assert under_autocast.item() == exact.item()
    torch.testing.assert_close(distances, squared_distances(x, y))
    low = x.to(dtype).requires_grad_()
    loss = MultiKernelMMD()(low, y.to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert low.grad.dtype == dtype
    torch.testing.assert_close(loss, MultiKernelMMD()(x.to(dtype).float(), y.to(dtype).float()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_hand_nan_on(bad):
    x, y = sample(6, 6, 3)
    x[2, 1] = bad
    for loss in (mmd2, MultiKernelMMD(), linear_time_mmd2, lambda x, y: linear_mmd2(x, y) * 0):
        assert loss(x, y).isnan()
    assert JointMMD()([x, y], [y, y]).isnan()


@pytest.mark.filterwarnings("ignore")  # torch's own deprecations while it compiles
@pytest.mark.parametrize("n", [5, 8])
def test_compiles_as_one_graph(n):
    x, y = sample(n, 6, 3, dtype=torch.float32)
    p, q = x.softmax(1), y.softmax(1)
    for module, arguments in ((MultiKernelMMD(), (x, y)), (JointMMD(), ([x, p], [y, q]))):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), module(*arguments))
        x.grad = None
        x.requires_grad_()
        expected = torch.autograd.grad(module(*arguments), x)[0]
        torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), x)[0], expected)


# ------------------------------------------------------------------------------------------- scales and bad values

FOLLOWING = {
    "multi-kernel": MultiKernelMMD(),
    "unbiased": MultiKernelMMD(estimator="unbiased"),
    "joint": lambda x, y: JointMMD([GaussianKernels(), GaussianKernels()])([x, x[:, :2]], [y, y[:, :2]]),
    "mmd2": mmd2,
    "linear-time": linear_time_mmd2,
    "spread": lambda x, y: linear_mmd2(x, y, "spread"),
}
FIXED = {
    "mmd2": lambda x, y, s: mmd2(x, y, [s, 4 * s]),
    "multi-kernel": lambda x, y, s: MultiKernelMMD(sigma2=[s, 4 * s])(x, y),
    "linear-time": lambda x, y, s: linear_time_mmd2(x, y, [s, 4 * s]),
    "kernel": lambda x, y, s: gaussian_kernel(x, y, s).mean(),
    "witness": lambda x, y, s: witness(x, x, y, [s, 4 * s]).square().sum(),
}


@settings(max_examples=20)
@given(
    name=st.sampled_from(sorted(FOLLOWING)),
    power=st.integers(-110, 110),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_value_and_gradient_do_not_depend_on_the_scale(name, power, dtype, seed):
    """Squared distances leave float32 at 1e-19 and 1e19; by a power of two, not even a digit changes."""
    x, y = sample(6, 8, 3, seed, dtype=dtype)
    scale = 2.0**power
    plain, scaled = x.clone().requires_grad_(), (x * scale).requires_grad_()
    values = FOLLOWING[name](plain, y), FOLLOWING[name](scaled, y * scale)
    assert torch.equal(*values)
    gradients = torch.autograd.grad(values[0], plain)[0], torch.autograd.grad(values[1], scaled)[0]
    assert torch.equal(gradients[0], gradients[1] * scale)
    assert gradients[0].any()


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e19, 1e25])
def test_a_fixed_bandwidth_of_any_scale_is_right(name, scale):
    """σ² itself leaves float32 here."""
    x, y = sample(6, 8, 3)
    x, y = scale * x, scale * y
    exact = x.clone().requires_grad_()
    rounded = x.float().requires_grad_()
    expected, value = FIXED[name](exact, y, 1.3 * scale**2), FIXED[name](rounded, y.float(), 1.3 * scale**2)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    expected, value = torch.autograd.grad(expected, exact)[0], torch.autograd.grad(value, rounded)[0]
    torch.testing.assert_close(value.double() * scale, expected * scale, rtol=1e-4, atol=1e-6)
    tensor = torch.tensor(1.3 * scale**2, dtype=torch.float64)
    torch.testing.assert_close(
        FIXED[name](x.float(), y.float(), tensor), FIXED[name](x.float(), y.float(), tensor.item())
    )


def test_a_bandwidth_far_from_the_data_is_right():
    x, y = sample(6, 6, 3, dtype=torch.float32)
    for s in (1e-45, 1e-300, 5e-324, torch.tensor(1e-45)):
        assert (gaussian_kernel(x, y, s) == 0).all()
        assert mmd2(x, y, s).item() == pytest.approx(1 / 3)
    for s in (1e40, 1e300, torch.tensor(1e300, dtype=torch.float64)):
        assert (gaussian_kernel(x, y, s) == 1).all()


def test_a_constant_column_hides_no_small_spread():
    x, y = sample(6, 8, 3, dtype=torch.float32)
    one = torch.ones(8, 1)
    for loss in [*FOLLOWING.values(), lambda x, y: mmd2(x, y, 1e-40), lambda x, y: linear_time_mmd2(x, y, 1e-40)]:
        narrow = [1e-20 * t for t in (x, y)]
        wide = [torch.cat((t, one[: len(t)]), 1) for t in narrow]
        if loss is not FOLLOWING["joint"]:
            torch.testing.assert_close(loss(*wide), loss(*narrow), rtol=1e-5, atol=1e-6)


def test_mean_and_median_distance_are_rounded_to_what_the_format_holds():
    x, y = sample(6, 8, 3, dtype=torch.float32)
    for f in (mean_squared_distance, median_squared_distance, lambda x, y: squared_distances(x, y).max()):
        value = f(x, y)
        assert f(1e-20 * x, 1e-20 * y).item() == pytest.approx(1e-40 * value.item(), rel=1e-3)  # a denormal
        assert f(1e-30 * x, 1e-30 * y).item() == 0
        assert f(1e30 * x, 1e30 * y).item() == float("inf")
    assert mmd2(x, y, mean_squared_distance(1e-30 * x, 1e-30 * y)).isnan()
    assert mmd2(x, y, mean_squared_distance(1e30 * x, 1e30 * y)).isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["x", "y"])
def test_no_function_takes_what_is_not_finite_for_a_number(bad, which):
    """An infinite row is at distance ∞ of all others and its kernel is 0: that would look like a result."""
    x, y = sample(6, 6, 3, dtype=torch.float32)
    (x if which == "x" else y)[2, 1] = bad
    for loss in FOLLOWING.values():
        assert loss(x, y).isnan()
    for loss in FIXED.values():
        assert loss(x, y, 0.7).isnan()
    assert linear_mmd2(x, y).isnan()
    assert mean_squared_distance(x, y).isnan()
    assert median_squared_distance(x, y).isnan()
    assert not squared_distances(x, y).isfinite().any()
    for call in (lambda: mmd_test(x, y), lambda: mmd_test(x, y, 0.7)):
        with pytest.raises(ValueError, match="x or y holds NaN or infinity"):
            call()
    with pytest.raises(ValueError, match="not finite"):
        optimal_kernel_weights(x, y, [0.7, 2.0])


@pytest.mark.parametrize("sigma2", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_tensor_that_is_no_bandwidth_gives_nan(sigma2):
    x, y = sample(6, 6, 3)
    sigma2s = torch.tensor([1.0, sigma2], dtype=torch.float64)
    for loss in (mmd2, linear_time_mmd2, lambda x, y, s: gaussian_kernel(x, y, s[1]).mean()):
        assert loss(x, y, sigma2s).isnan()
    with pytest.raises(ValueError, match="sigma2 must be positive and finite"):
        mmd_test(x, y, sigma2s)
    with pytest.raises(ValueError, match="not finite"):
        optimal_kernel_weights(x, y, sigma2s)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.5, -0.5], [float("nan"), 1.0], [0.0, 0.0]])
def test_a_tensor_that_is_no_convex_combination_is_no_weight(weights):
    x, y = sample(6, 6, 3)
    for loss in (mmd2, linear_time_mmd2):
        assert loss(x, y, [1.0, 2.0], torch.tensor(weights)).isnan()
        with pytest.raises(ValueError, match="sum to 1"):
            loss(x, y, [1.0, 2.0], weights)
    with pytest.raises(ValueError, match="sum to 1"):
        MultiKernelMMD((1.0, 2.0), torch.tensor(weights))
    with pytest.raises(ValueError, match="weights not negative with sum 1"):
        mmd_test(x, y, [1.0, 2.0], torch.tensor(weights))
    for dtype in (torch.bfloat16, torch.float32):
        right = torch.full((5,), 0.2, dtype=dtype)
        assert mmd2(x, y, [1.0] * 5, right).item() == pytest.approx(mmd2(x, y, 1.0).item(), rel=1e-2)


def test_bandwidths_may_be_a_numpy_array():
    x, y = sample(6, 6, 3)
    assert torch.equal(mmd2(x, y, np.array([0.5, 2.0])), mmd2(x, y, [0.5, 2.0]))
    with pytest.raises(ValueError, match=r"got -2\.0"):
        mmd2(x, y, np.array([0.5, -2.0]))


def test_layout_and_dtype_of_the_samples_may_differ():
    x, y = sample(6, 8, 3)
    for name, loss in (FOLLOWING | {"linear": linear_mmd2}).items():
        strided = torch.stack((x, x), 2)[:, :, 0], y.T.contiguous().T
        torch.testing.assert_close(loss(*strided), loss(x, y), msg=lambda m, name=name: f"{name}: {m}")
        low = loss(x.bfloat16(), y.float())
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, loss(x.bfloat16().float(), y.float()))
        assert loss(x.float(), y).dtype == torch.float64


@pytest.mark.parametrize("loss", [MultiKernelMMD(), mmd2, linear_time_mmd2, linear_mmd2, JointMMD([GaussianKernels()])])
def test_autocast_reaches_neither_value_nor_gradient(loss):
    """Also where backward itself is called under autocast, as a gradient penalty does."""
    x, y = sample(8, 8, 5, dtype=torch.float32)
    x.requires_grad_()

    def both():
        value = loss([x], [y]) if isinstance(loss, JointMMD) else loss(x, y)
        return value, torch.autograd.grad(value, x)[0]

    expected = both()
    with torch.autocast("cpu", torch.bfloat16):
        found = both()
    assert found[0].dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------- transforms of torch.func


TRANSFORMED = {
    "mmd2": lambda x, y: mmd2(x, y, [0.5, 2.0]),
    "default": mmd2,
    "multi-kernel": MultiKernelMMD(),
    "unbiased": MultiKernelMMD(estimator="unbiased"),
    "joint": lambda x, y: JointMMD()([x, x.softmax(1)], [y, y.softmax(1)]),
    "linear-time": linear_time_mmd2,
    "linear-time fixed": lambda x, y: linear_time_mmd2(x, y, 0.7),
    "linear": lambda x, y: linear_mmd2(x, y, "spread"),
    "distances": lambda x, y: squared_distances(x).square().mean() + squared_distances(x, y).square().mean(),
    "witness": lambda x, y: witness(x, x, y, 1.5).square().sum(),
}


# torch's own, when it first loads forward mode
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_agree_with_autograd(name):
    loss = TRANSFORMED[name]
    xs = torch.stack([sample(4, 5, 3, seed)[0] for seed in range(3)])
    ys = torch.stack([sample(4, 5, 3, seed)[1] for seed in range(3)])
    values = torch.stack([loss(x, y) for x, y in zip(xs, ys, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(xs, ys), values)
    torch.testing.assert_close(torch.func.vmap(loss, in_dims=(0, None))(xs, ys[0])[0], values[0])
    gradients = []
    for x, y in zip(xs, ys, strict=True):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf, y), leaf)[0])
    torch.testing.assert_close(torch.func.grad(loss)(xs[0], ys[0]), gradients[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(xs, ys), torch.stack(gradients))
    tangent = torch.cos(xs[0])
    value, slope = torch.func.jvp(lambda x: loss(x, ys[0]), (xs[0],), (tangent,))
    torch.testing.assert_close(value, values[0])
    torch.testing.assert_close(slope, (gradients[0] * tangent).sum())
    torch.testing.assert_close(
        torch.func.jvp(torch.func.grad(lambda x: loss(x, ys[0])), (xs[0],), (tangent,))[1],
        torch.autograd.functional.hvp(lambda x: loss(x, ys[0]), xs[0], tangent)[1],
    )


@forward_mode
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: mmd2(x, y, [0.5, 2.0]),
        lambda x, y: JointMMD([GaussianKernels(sigma2=2.0), GaussianKernels(sigma2=0.8)])([x, x.sin()], [y, y.sin()]),
        lambda x, y: linear_time_mmd2(x, y, 1.5),
        lambda x, y: linear_mmd2(x, y, "width"),
        lambda x, y: gaussian_kernel(x, y, 1.5),
        lambda x, y: squared_distances(x, y),
    ],
    ids=["mmd2", "joint", "linear-time", "linear", "kernel", "distances"],
)
def test_second_derivatives_with_fixed_bandwidths(loss):
    x, y = (t.requires_grad_() for t in sample(4, 5, 3))
    assert torch.autograd.gradgradcheck(loss, (x, y))
    assert torch.autograd.gradcheck(loss, (x, y), check_forward_ad=True)


def test_a_bandwidth_can_be_learned():
    x, y = sample(4, 5, 3)
    log_sigma2 = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    for loss in (mmd2, linear_time_mmd2):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(x, y, s.exp()), log_sigma2)


class _LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


def test_linear_time_never_makes_more_than_its_input():
    n, d = 50_000, 4
    x, y = torch.randn(n, d, requires_grad=True), torch.randn(n, d)
    with _LargestTensor() as seen:
        linear_time_mmd2(x, y).backward()
    assert 0 < seen.largest <= 2 * n * d
    with _LargestTensor() as seen:  # and the quadratic one is seen to be quadratic
        mmd2(x[:500], y[:500])
    assert seen.largest == 1000**2


def test_no_tensor_of_all_differences():
    x, y = torch.randn(20, 500, requires_grad=True), torch.randn(20, 500)
    with _LargestTensor() as seen:
        MultiKernelMMD()(x, y).backward()
    assert seen.largest == 40 * 500


# ------------------------------------------------------------------------------------------------------ the modules


def test_state_dict_round_trip_copy_and_pickle():
    x, y = sample(6, 6, 3)
    weights = [0.5, 0.1, 0.1, 0.1, 0.2]
    learned = MultiKernelMMD(weights=weights)
    restored = MultiKernelMMD()
    assert restored(x, y) != learned(x, y)
    restored.load_state_dict(learned.state_dict(), strict=True)
    buffer = io.BytesIO()
    torch.save(JointMMD().state_dict(), buffer)
    buffer.seek(0)
    JointMMD().load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    for module in (restored, copy.deepcopy(learned), pickle.loads(pickle.dumps(learned))):
        assert module(x, y).item() == learned(x, y).item()
    assert "0.5" in repr(learned)


def test_a_cast_module_still_gives_equal_rows_the_kernel_one():
    x, _ = sample(4, 1, 3)
    kernels = GaussianKernels(weights=[0.3, 0.3, 0.2, 0.1, 0.1]).to(torch.bfloat16)
    torch.testing.assert_close(kernels(x).diagonal(), torch.ones(4, dtype=x.dtype), rtol=0, atol=1e-15)


# --------------------------------------------------------------------------------------------------- learned weights


def test_optimal_weights_solve_the_quadratic_program():
    x, y = sample(400, 400, 3, shift=0.4)
    sigma2s = [0.1, 0.5, 2.0, 8.0, 50.0]
    beta = optimal_kernel_weights(x, y, sigma2s, ridge=1e-3).numpy()
    assert beta.sum() == pytest.approx(1)
    assert (beta >= 0).all()
    h = np.array(
        [
            [reference.linear_time(x[i : i + 2].numpy(), y[i : i + 2].numpy(), mixture([s], [1.0])) for s in sigma2s]
            for i in range(0, 400, 2)
        ]
    )
    d, Q = h.mean(0), np.cov(h.T) + 1e-3 * np.eye(5)
    solved = minimize(
        lambda b: b @ Q @ b,
        np.full(5, 0.2 / d.mean()),
        jac=lambda b: 2 * Q @ b,
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda b: d @ b - 1, "jac": lambda b: d},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(beta, solved.x / solved.x.sum(), atol=1e-4)


def test_without_a_positive_discrepancy_the_least_bad_kernel_gets_all_the_weight():
    """x and y alternate so that every quadruple looks closer across than within: all d are negative."""
    x = torch.tensor([[0.0], [1.0]] * 4, dtype=torch.float64) + 0.3 * sample(8, 1, 1)[0]
    y = torch.tensor([[1.0], [0.0]] * 4, dtype=torch.float64)
    sigma2s = [0.003, 0.1, 3.0, 100.0]
    h = np.array(
        [
            [reference.linear_time(x[i : i + 2].numpy(), y[i : i + 2].numpy(), mixture([s], [1.0])) for s in sigma2s]
            for i in range(0, 8, 2)
        ]
    )
    d = h.mean(0)
    ratio = d / np.sqrt(h.var(0, ddof=1) + 1e-4)
    assert (d < 0).all()
    assert ratio.argmax() not in (d.argmax(), d.argmin(), np.abs(ratio).argmax())
    assert optimal_kernel_weights(x, y, sigma2s).tolist() == np.eye(4)[ratio.argmax()].tolist()


def test_learned_weights_beat_uniform_ones_where_one_kernel_sees_the_difference():
    """The difference has a short wavelength: the wide kernels only add noise. β comes from other rows than the test."""
    generator = torch.Generator().manual_seed(0)
    sigma2s = [0.02, 1.0, 10.0, 100.0, 1000.0]

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(2, n, 1, generator=generator, dtype=torch.float64) * 2
        return x, y.round() + 0.15 * torch.randn(n, 1, generator=generator, dtype=torch.float64)

    beta = optimal_kernel_weights(*draw(2000), sigma2s)
    rejected = {"learned": 0, "uniform": 0}
    for trial in range(40):
        x, y = draw(60)
        for name, weights in (("learned", beta), ("uniform", None)):
            rejected[name] += mmd_test(x, y, sigma2s, weights, permutations=99, seed=trial).p_value <= 0.05
    assert rejected["learned"] >= rejected["uniform"] + 10, rejected


# --------------------------------------------------------------------------------------------------- permutation test


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_permutation_test_equals_permuting_the_data(estimator):
    x, y = sample(5, 4, 2)
    result = mmd_test(x, y, sigma2=0.7, estimator=estimator, permutations=20, seed=3)
    assert result.statistic == pytest.approx(mmd2(x, y, sigma2=0.7, estimator=estimator).item(), abs=1e-14)
    z = torch.cat((x, y))
    order = torch.rand(20, 9, generator=torch.Generator().manual_seed(3)).argsort(1)
    null = [reference.mmd2(z[o[:5]].numpy(), z[o[5:]].numpy(), mixture([0.7], [1.0]), estimator) for o in order]
    np.testing.assert_allclose(result.null.numpy(), null, atol=1e-14)
    assert result.p_value == (1 + sum(t >= result.statistic - 1e-12 for t in null)) / 21


def test_permutation_test_counts_the_observed_split_as_a_tie():
    """Of 3 + 3 rows one split in ten is the observed one or its mirror: rounding must not take p below."""
    for seed in range(10):
        x, y = sample(3, 3, 2, seed, shift=20.0, dtype=(torch.float64, torch.float32)[seed % 2])
        assert mmd_test(x, y, permutations=2000).p_value == pytest.approx(0.1, abs=0.03)


def test_permutation_test_repeats_with_its_seed_and_leaves_the_global_generator_alone():
    x, y = sample(10, 10, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (mmd_test(x, y, permutations=50, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.null, again.null)
    assert not torch.equal(first.null, other.null)


def test_permutation_test_sees_a_difference_and_refuses_nan():
    x, y = sample(40, 50, 3, shift=1.0)
    assert mmd_test(x, y, permutations=99).p_value == 0.01
    assert isinstance(mmd_test(x.requires_grad_(), y, permutations=9).statistic, float)
    bad = y.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        mmd_test(x, bad)


@pytest.mark.parametrize("sigma2", [1e8, 1e12, 1e100])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_p_value_of_a_wide_kernel_is_that_of_the_linear_one(sigma2, estimator):
    """σ²·T tends to the difference of linear kernels: ties are at the scale of the sums, not of 1."""
    x, y = sample(30, 20, 3, shift=0.6)
    result = mmd_test(x, y, sigma2, estimator=estimator, permutations=200)
    z = torch.cat((x, y))
    order = torch.rand(200, 50, generator=torch.Generator().manual_seed(0)).argsort(1)
    linear = reference.linear_mmd2
    null = np.array([linear(z[o[:30]].numpy(), z[o[30:]].numpy(), estimator) for o in order])
    observed = linear(x.numpy(), y.numpy(), estimator)
    assert result.p_value == (1 + (null >= observed).sum()) / 201
    assert result.p_value < 0.05
    assert sigma2 * result.statistic == pytest.approx(observed, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize("sigma2", [None, 1e-6, 1.0, 1e6, 1e14])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (1, 6), (3, 2)])
def test_ties_count_at_every_scale(n, m, sigma2, scale):
    """Few splits exist, so many permutations are the observed one; against exact ties, enumerated."""
    x, y = (scale * t for t in sample(n, m, 2, shift=3.0))
    z = torch.cat((x, y))
    sigma2 = None if sigma2 is None else sigma2 * scale**2
    order = torch.rand(300, n + m, generator=torch.Generator().manual_seed(0)).argsort(1)
    values = {}
    for o in [torch.arange(n + m), *order]:
        split = frozenset(o[:n].tolist())
        if n == m:  # the mirror is the same split
            split = frozenset((split, frozenset(o[n:].tolist())))
        if split not in values:
            values[split] = mmd_test(z[o[:n]], z[o[n:]], sigma2, permutations=1).statistic
    observed = next(iter(values.values()))

    def key(o):
        split = frozenset(o[:n].tolist())
        return frozenset((split, frozenset(o[n:].tolist()))) if n == m else split

    largest = max(abs(v) for v in values.values())
    expected = sum(values[key(o)] >= observed - 1e-9 * largest for o in order)
    assert mmd_test(x, y, sigma2, permutations=300).p_value == (1 + expected) / 301


def test_equal_and_constant_samples_are_never_rejected():
    x, _ = sample(7, 1, 3)
    assert mmd_test(x, x.clone(), permutations=50).p_value > 0.5
    constant = torch.full((7, 3), 0.1)
    for estimator in ("biased", "unbiased"):
        assert mmd_test(constant, constant, estimator=estimator, permutations=50).p_value == 1
        assert mmd_test(x, x, 1e-300, estimator=estimator, permutations=50).statistic <= 0


def test_weights_for_kernels_much_wider_than_the_data_are_right():
    """d is 1e-14 here: in float64 h has digits left, and nnls must not take d for zero."""
    x, y = sample(40, 40, 2, shift=2.0)
    d = np.array([reference.linear_time(x.numpy(), y.numpy(), mixture([s], [1.0])) for s in (1e14, 1e16)])
    assert d[0] > 0
    beta = optimal_kernel_weights(x, y, [1e14, 1e16])
    assert beta.isfinite().all()
    assert beta.sum().item() == pytest.approx(1)
    assert beta[0] > beta[1]


# ------------------------------------------------------------------------------------------------------- refusals

X, Y = torch.randn(4, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmd2(X[:0], Y), "x must have 1 rows or more, got 0"),
        (lambda: mmd2(X, Y[:0]), "y must have 1 rows or more, got 0"),
        (lambda: mmd2(X, Y[:, :2]), "one width.*3.*2"),
        (lambda: mmd2(X[:, :, None], Y), r"x must have shape \(rows, width\), got \(4, 3, 1\)"),
        (lambda: mmd2(X.long(), Y), "x must be floating, got torch.int64"),
        (lambda: mmd2(X[:1], Y, 1.0, estimator="unbiased"), "x must have 2 rows or more, got 1"),
        (lambda: mmd2(X, Y[:1], 1.0, estimator="unbiased"), "y must have 2 rows or more, got 1"),
        (lambda: mmd2(X, Y, sigma2=0.0), "sigma2 must be positive and finite, got 0.0"),
        (lambda: mmd2(X, Y, sigma2=[1.0, -2.0]), "got -2.0"),
        (lambda: mmd2(X, Y, sigma2=float("nan")), "got nan"),
        (lambda: mmd2(X, Y, sigma2=[]), "sigma2 is empty"),
        (lambda: mmd2(X, Y, sigma2=1.0, estimator="umbiased"), "got 'umbiased'"),
        (lambda: mmd2(X, Y, sigma2=[1.0, 2.0], weights=[1.0]), "weights must have 2 values.*got 1"),
        (lambda: mmd2(X, Y, sigma2=[1.0, 2.0], weights=torch.ones(3)), r"shape \(2,\).*got \(3,\)"),
        (lambda: mmd2(X, Y, sigma2=[1.0, 2.0], weights=[1.0, 1.0]), r"sum to 1, got \[1.0, 1.0\]"),
        (lambda: mmd2(X, Y, sigma2=[1.0, 2.0], weights=[1.5, -0.5]), "must not be negative"),
        (lambda: gaussian_kernel(X, Y, -1.0), "got -1.0"),
        (lambda: MultiKernelMMD(multipliers=(1.0, 0.0)), "multipliers must be positive and finite, got 0.0"),
        (lambda: MultiKernelMMD(multipliers=()), "multipliers is empty"),
        (lambda: MultiKernelMMD(estimator="linear"), "got 'linear'"),
        (lambda: MultiKernelMMD(weights=[1.0] * 5), "divide them by their sum"),
        (lambda: MultiKernelMMD(estimator="unbiased")(X[:1], Y), "x must have 2 rows"),
        (lambda: JointMMD(kernels=[]), "got none"),
        (lambda: JointMMD()([X], [Y]), "got 1 layers of x and 1 of y for 2 kernels"),
        (lambda: JointMMD()([X, X], [Y]), "got 2 layers of x and 1 of y"),
        (lambda: JointMMD()([X, X[:3]], [Y, Y]), r"layers of x must have equal rows, got \[4, 3\]"),
        (lambda: JointMMD()([X, X], [Y, Y[:, :1]]), "x of layer 1': 3, 'y of layer 1': 1"),
        (lambda: linear_time_mmd2(X[:1], Y), "x must have 2 rows or more, got 1"),
        (lambda: linear_mmd2(X, Y, "depth"), "got 'depth'"),
        (lambda: optimal_kernel_weights(X[:3], Y, [1.0]), "x must have 4 rows or more, got 3"),
        (lambda: optimal_kernel_weights(X, Y, [1.0], ridge=0), "ridge must be positive, got 0"),
        (lambda: optimal_kernel_weights(X * float("nan"), Y, [1.0]), "not finite"),
        (lambda: mmd_test(X, Y, permutations=0), "permutations must be 1 or more, got 0"),
        (lambda: mean_squared_distance(X[:1]), "two rows, got 1"),
        (lambda: median_squared_distance(X[:1]), "two rows, got 1"),
        (lambda: squared_distances(X[0]), r"got \(3,\)"),
        (lambda: witness(X[:, :2], X, Y, 1.0), "'points': 2"),
        (lambda: mmd2(X[:, :0], Y[:, :0]), r"x must have one column or more, got \(4, 0\)"),
        (lambda: linear_mmd2(X, Y.to("meta")), "on one device, got .*'x': 'cpu', 'y': 'meta'"),
        (lambda: linear_time_mmd2(X, Y.int()), "y must be floating, got torch.int32"),
        (lambda: mmd_test(X.long(), Y), "x must be floating"),
        (lambda: GaussianKernels()(X[:1]), "z must have 2 rows or more, got 1"),
        (lambda: optimal_kernel_weights(X, Y, [1.0], ridge=float("nan")), "ridge must be positive, got nan"),
        (lambda: mean_squared_distance(), "two rows, got 0"),
    ],
)
def test_bad_input_is_refused_by_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
