"""The reversible node: inverse, gradient, conditions, memory over T, operation counts, and the method around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.contracts import StagedModel
from harness.ledger import Ledger
from harness.memory import track
from harness.predict import faking
from methods.bptt import BPTT
from methods.kernels.reversible import Layout, ReversibleLIFNode, _through_forward, _through_inverse
from methods.kernels.reversible_torch import Coefficients, Groups, gradient, inverse, step
from methods.reversible_node import NotInvertibleError, ReversibleNode, ReversibleNodeOptions
from tests.harness.benches import make_spec, predicted, supported
from tests.methods.nets import batch, build, difference, integrate, lif, loss, plif, prepared, run

INVERTING = ["reforward", "inverse_graph"]
T, N, WIDTH = 16, 12, 48


def coefficients(tau: float = 2.0, alpha: float = 0.5, beta: float = 0.1) -> Coefficients:
    return Coefficients(tau, alpha, beta, 1.0, surrogate.ATan())


def method(**options: Any) -> ReversibleNode:
    return ReversibleNode(ReversibleNodeOptions(**options))


def signal(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn((T, N, WIDTH), generator=draw, dtype=torch.float64)).to(dtype)


def groups(seed: int, count: int = 2) -> Groups:
    return list(signal(seed)[0].chunk(count, -1))


def test_one_step_is_the_six_equations():
    (x1, x2), (v1, v2), c = groups(0), groups(1), coefficients(tau=1.6, alpha=0.6)
    m1 = c.a * v1 + c.b * x1
    y1 = (m1 >= 1) + c.beta * x2
    m2 = c.a * v2 + c.b * y1
    y2 = (m2 >= 1) + c.beta * x1
    y, after = step([x1, x2], [v1, v2], c)
    assert (c.a, c.b) == (1 - 1 / 1.6, 1 / 1.6)
    expected = [y1, y2, (1 - y1) * m1 + c.alpha * v1, (1 - y2) * m2 + c.alpha * v2]
    assert 0 < (m1 >= 1).double().mean() < 1
    for ours, theirs in zip([*y, *after], expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_inverse_gives_input_and_membranes_back(count):
    x, v, c = groups(0, count), groups(1, count), coefficients()
    found = inverse(*step(x, v, c), c)
    for ours, theirs in zip([*found.x, *found.v], [*x, *v], strict=True):
        assert float((ours - theirs).abs().max()) <= 5e-15  # 1.1e-15 seen: an inverse divides roundings by beta = 0.1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gradient_through_the_inverse_is_autograds(count):
    c, leaves = coefficients(), [g.requires_grad_() for g in (*groups(0, count), *groups(1, count))]
    upstream = [*groups(2, count), *groups(3, count)]
    y, after = step(leaves[:count], leaves[count:], c)
    expected = torch.autograd.grad([*y, *after], leaves, upstream)
    with torch.no_grad():
        found = inverse([g.detach() for g in y], [g.detach() for g in after], c)
        got = gradient(upstream[:count], [g.clone() for g in upstream[count:]], found, c)
    for ours, theirs in zip([*got[0], *got[1]], expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-10 * float(theirs.norm())


def sequence(backward: Any, dtype: torch.dtype, count: int = 2, dim: int = -1) -> dict[str, Tensor]:
    node = ReversibleLIFNode(coefficients(), Layout(count, dim), backward)
    x = signal(0, dtype).clamp(-9, 9).requires_grad_()
    start = (signal(3, dtype)[0] / 4).requires_grad_()
    node.v = start
    y = node(x)
    weight = signal(2, dtype)
    ((y * weight).sum() + (node.v * weight[0]).sum()).backward()
    drift = torch.zeros(()) if node.drift is None else node.drift
    return {"y": y.detach(), "v": node.v.detach(), "x": x.grad, "v0": start.grad, "drift": drift}


@pytest.mark.parametrize("backward", INVERTING)
@pytest.mark.parametrize(("count", "dim"), [(2, -1), (3, -1), (4, 1)])
def test_sequence_in_float64(backward, count, dim):
    expected, got = sequence("stored", torch.float64, count, dim), sequence(backward, torch.float64, count, dim)
    assert torch.equal(got["y"], expected["y"])
    assert torch.equal(got["v"], expected["v"])
    assert got["drift"] <= 1e-12
    for name in ("x", "v0"):
        assert float((got[name] - expected[name]).norm()) <= 1e-10 * float(expected[name].norm())


@pytest.mark.parametrize("backward", INVERTING)
def test_sequence_in_float32(backward):
    # methods.md saw 6e-6 at alpha = 0.5, beta = 0.1, T = 16.
    expected, got = sequence("stored", torch.float32), sequence(backward, torch.float32)
    assert torch.equal(got["y"], expected["y"])
    assert float((got["x"] - expected["x"]).norm()) <= 1e-5 * float(expected["x"].norm())
    assert 0 < got["drift"] <= 1e-3


FREE = ("detach", "_to_copy", "ones_like", "alias", "copy_", "view", "clone", "zeros_like")


class Operations(TorchDispatchMode):
    """Arithmetic operations per element of a group; a fused multiply-add counts as two."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name not in FREE:
            fused = "addcmul" in name or (kwargs or {}).get("alpha", 1) != 1
            self.count += 1 + fused
        return func(*args, **(kwargs or {}))


def operations(run_once: Callable[[], Any]) -> float:
    with torch.no_grad(), Operations() as counted:
        run_once()
    return counted.count / 2


def test_operation_counts():
    # methods.md counts 37 per element for inverse, forward and backward, 27 without the forward; the spike and the
    # surrogate cost one more each here, and autograd adds up gradients by itself.
    x, v, c = groups(0), groups(1), coefficients()
    y, after = step(x, v, c)
    forward, back = operations(lambda: step(x, v, c)), operations(lambda: inverse(y, after, c))
    assert (forward, back) == (11, 13)
    grads = groups(2), groups(3)
    ours = operations(lambda: _through_inverse(y, after, grads[0], [g.clone() for g in grads[1]], c))
    usual = operations(lambda: _through_forward(y, after, grads[0], grads[1], c))
    assert usual - ours >= forward
    assert ours / usual <= 27 / 37


def node_bytes(make: Callable[[], Any], steps: int) -> int:
    """What a node alone keeps for its backward, besides its output, which the next layer keeps."""
    node, x = make(), torch.randn(steps, 4, 256, requires_grad=True)
    for _ in range(2):  # the first step makes what stays
        node.reset()
        ledger = Ledger(node)
        ledger.register("inputs", [x])
        with ledger:
            y = node(x)
            ledger.mark_output(y)
            y.sum().backward()
        del y
    saved = ledger.report().saved_bytes
    assert saved is not None
    return saved


@pytest.mark.parametrize("backward", INVERTING)
def test_memory_of_the_node_is_flat_over_time(backward):
    def reversible() -> ReversibleLIFNode:
        return ReversibleLIFNode(coefficients(), Layout(2, -1), backward)

    ours = {node_bytes(reversible, steps) for steps in (4, 8, 16, 32)}
    assert len(ours) == 1
    # The last membrane, and three scalars: max|X|, drift, the loss.
    assert ours.pop() == 4 * 256 * 4 + 3 * 512
    plain = [node_bytes(lif(detach_reset=True), steps) for steps in (4, 8, 16, 32)]
    assert plain[3] > 7 * plain[0]
    assert plain[3] > 45 * node_bytes(reversible, 32)


def test_stored_backward_grows_with_time():
    found = [node_bytes(lambda: ReversibleLIFNode(coefficients(), Layout(2, -1)), steps) for steps in (4, 32)]
    assert found[1] > 7 * found[0]


def reference(model: StagedModel, ours: ReversibleNode, x: Tensor, y: Tensor) -> Any:
    plain = ours.finish(prepared(ours, model, x))
    return run(BPTT(), plain, x, y)


@pytest.mark.parametrize("options", [{"backward": b} for b in INVERTING] + [{"groups": 4}, {"split": "channel"}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_network_against_autograd_of_the_changed_network(options, dtype, tolerance):
    x, y = batch(dtype=dtype)
    ours, other = method(**options), method(**options)
    expected = reference(build(lif()).to(dtype), other, x, y)
    got = run(ours, prepared(ours, build(lif()).to(dtype), x), x, y)
    assert torch.equal(got.out.logits, expected.out.logits)
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    assert difference(got.gradients, expected.gradients) <= tolerance
    plan = ours.plan()
    assert plan["nodes"] == 3
    assert 0 < plan["max_input"] < 10
    assert plan["max_drift"] <= (1e-12 if dtype == torch.float64 else 1e-4)


def test_every_lif_is_replaced_with_its_own_constants():
    x, _ = batch()
    model = build(lif(tau=1.5, v_threshold=0.7, surrogate_function=surrogate.Sigmoid(alpha=3.0)))
    model.stages.append(model.stages[3][2])  # one neuron in two places stays one
    model = prepared(method(alpha=0.4), model, x)
    assert not any(type(module) is neuron.LIFNode for module in model.modules())
    nodes = [module for module in model.modules() if isinstance(module, ReversibleLIFNode)]
    assert len(nodes) == 3
    assert model.stages[4] is model.stages[3][2]
    assert {(n.coefficients.tau, n.coefficients.v_threshold, n.coefficients.alpha) for n in nodes} == {(1.5, 0.7, 0.4)}
    assert all(node.coefficients.surrogate.alpha == 3.0 for node in nodes)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (lambda: build(lif(tau=4.0)), {}, r"alpha is 0.5, but must be at most 1 - a = 1 / tau = 0.25 \(tau = 4\)"),
        (lambda: build(integrate()), {}, "IFNode has no reversible counterpart"),
        (lambda: build(plif()), {}, "ParametricLIFNode has no reversible counterpart"),
        (lambda: build(lif()).bfloat16(), {}, "half precision"),
        (lambda: StagedModel([nn.Identity()], nn.Identity(), "none"), {}, "no neuron"),
    ],
)
def test_refusals_name_the_figures(model, options, reason):
    found = method(**options).supports(model(), loss())
    assert found is not None
    assert re.search(reason, found)


def test_alpha_at_its_bound_is_supported():
    assert method(alpha=0.25).supports(build(lif(tau=4.0)), loss()) is None
    assert method(alpha=0.2).supports(build(lif(tau=5.0)), loss()) is None  # 1 - (1 - 1/5) is below 0.2


@pytest.mark.parametrize("backward", ["stored", *INVERTING])
def test_too_large_inputs_raise_before_any_update(backward):
    x, y = batch()
    ours = method(backward=backward, beta=0.5)
    model = prepared(ours, build(lif()), x)
    with pytest.raises(NotInvertibleError, match=r"stages.0.2: beta \* max\|X\| is 0.5 \* .* below alpha / a = 1 "):
        run(ours, model, x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_bound_is_where_the_inverse_divides_by_zero():
    c = coefficients()
    # a (1 - Y) + alpha at Y = 1 + beta X.
    assert c.a * -(c.beta * (c.bound / c.beta)) + c.alpha == pytest.approx(0.0)


def test_indivisible_inputs_are_named():
    node = ReversibleLIFNode(coefficients(), Layout(2, -1))
    with pytest.raises(ValueError, match=r"dimension -1 of one step of \(4, 2, 5\), 5, does not divide by 2"):
        node(torch.zeros(4, 2, 5))


def test_inside_autocast_the_node_computes_in_float32():
    x, y = batch()
    ours = method()
    model = prepared(ours, build(lif()), x)
    outputs: list[Tensor] = []
    model.stages[0][2].register_forward_hook(lambda _module, args, out: outputs.extend([*args, out]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step_out = run(ours, model, x, y)
    assert [value.dtype for value in outputs] == [torch.bfloat16, torch.float32]
    assert all(torch.isfinite(value).all() for value in step_out.gradients.values())
    assert "float32" in ours.plan()["computes_in"]


@pytest.mark.parametrize("options", [{"backward": b} for b in ("stored", *INVERTING)] + [{"groups": 4}])
def test_prediction_equals_the_measured_bytes(options):
    spec = make_spec("reversible-node", options=options)
    bench = supported(spec)
    real = track(bench.trainer(), bench)
    with faking(predicted(spec), bench.info) as fake_bench:
        trainer = fake_bench.trainer()
        fake = track(trainer, fake_bench)
    assert fake.timeline == real.timeline
    assert fake.saved_bytes == real.saved_bytes
    plan = trainer.method.plan()
    assert (plan["max_input"], plan["max_drift"]) == (None, None)


def test_the_network_keeps_less_than_with_plain_autograd():
    found = {}
    for backward in ("stored", *INVERTING):
        bench = supported(make_spec("reversible-node", options={"backward": backward}))
        found[backward] = track(bench.trainer(), bench)
    assert found["reforward"].saved_bytes == found["inverse_graph"].saved_bytes < 0.7 * found["stored"].saved_bytes
    assert found["inverse_graph"].peak_bytes < found["stored"].peak_bytes
