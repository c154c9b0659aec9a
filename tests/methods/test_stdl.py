"""STDL: what it equals without auxiliary networks, what it stores, and how the budget bounds it."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import Loss, StagedModel
from harness.predict import convert
from methods._local import AUXILIARIES
from methods._measure import Setting, activation_bytes
from methods.bptt import BPTT
from methods.fell import EligibilityTraces
from methods.ottt import OTTT
from methods.sltt import SLTT
from methods.stdl import STDL, STDLOptions
from tests.methods.nets import batch, conv, difference, lif, loss, no_norm, over_time, per_step, plif, prepared, run
from tests.methods.test_memory import track

SAME = {"sltt": SLTT, "ottt": OTTT, "bptt": BPTT}
RULES = ["uniform_max_depth", "max_subset"]


def stdl(**options: Any) -> STDL:
    return STDL(STDLOptions(**options))


def net(norm: Any = per_step, dropout: bool = False, seed: int = 0) -> StagedModel:
    """Six layers, two of which pool; input ``[T, N, 2, 8, 8]``."""
    torch.manual_seed(seed)
    pool = layer.MaxPool2d(2, step_mode="m")
    stages: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise([2, 4, 4, 8, 8, 16, 16])):
        drop = [layer.Dropout(0.4, step_mode="m")] if dropout else []
        stages += [conv(inputs, outputs, lif(v_reset=None, detach_reset=True), norm, *drop)]
        stages += [copy.deepcopy(pool)] if number in (1, 3) else []
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(16 * 4, 3, step_mode="m"))
    return StagedModel(stages, head, "per_step" if norm is per_step else "over_time" if norm is over_time else "none")


@pytest.mark.parametrize("temporal", SAME)
@pytest.mark.parametrize("norm", [per_step, no_norm])
def test_one_subnetwork_is_the_temporal_rule_itself(temporal, norm):
    x, y = batch(5, dtype=torch.float64)
    results = []
    for method in (stdl(K=1, temporal=temporal), SAME[temporal]()):
        model = net(norm, dropout=True).double()
        results.append(run(method, prepared(method, model, x), x, y))
    ours, theirs = results
    assert difference(ours.gradients, theirs.gradients) == 0.0
    assert torch.equal(ours.out.loss, theirs.out.loss)
    assert torch.allclose(ours.out.logits, theirs.out.logits, rtol=1e-14)
    assert all(torch.equal(ours.buffers[name], value) for name, value in theirs.buffers.items())


def test_bptt_inside_subnetworks_takes_any_normalisation_and_loss():
    x, y = batch(5, dtype=torch.float64)
    method = stdl(K=1, temporal="bptt")
    model = net(over_time).double()
    reference = copy.deepcopy(model)
    assert method.supports(model, loss("time_mean")) is None
    got = run(method, method.prepare(model.train(), x, loss("time_mean")), x, y, loss("time_mean"))
    expected = run(BPTT(), reference.train(), x, y, loss("time_mean"))
    assert difference(got.gradients, expected.gradients) == 0.0


@pytest.mark.parametrize("temporal", SAME)
@pytest.mark.parametrize("rule", ["classifier_only", *RULES])
def test_gradient_of_a_subnetwork_does_not_depend_on_what_comes_after_it(temporal, rule):
    x, y = batch(4, dtype=torch.float64)
    gradients = []
    for last in (3, 2, 1):
        torch.manual_seed(0)
        method = stdl(K=3, temporal=temporal, aux_rule=rule)
        model = prepared(method, net().double(), x)
        with torch.no_grad():
            for later in list(model.stages)[-last:]:
                for parameter in later.parameters():
                    parameter.mul_(last)
        method._parts = method._parts[:last]  # also with the later ones absent
        gradients.append(run(method, model, x, y).gradients)
    for name, value in gradients[2].items():
        assert torch.equal(gradients[0][name], value)
        assert torch.equal(gradients[1][name], value)
    assert {name.split(".")[0] for name in gradients[2]} == {"stages", AUXILIARIES}


def layers(method: STDL) -> list[tuple[int, ...]]:
    return [tuple(a["layers"]) for a in method.plan()["auxiliaries"]]


def planned(**options: Any) -> STDL:
    method = stdl(**options)
    x, _ = batch(4)
    prepared(method, net(over_time if options.get("temporal") == "bptt" else per_step), x)
    return method


@pytest.mark.parametrize("rule", RULES)
def test_no_limit_takes_all_later_layers_and_no_bytes_none(rule):
    assert layers(planned(K=3, aux_rule=rule)) == [(2, 3, 4, 5), (4, 5)]
    assert layers(planned(K=3, aux_rule=rule, budget_bytes=10**9)) == [(2, 3, 4, 5), (4, 5)]
    none = planned(K=3, aux_rule=rule, budget_bytes=0)
    assert layers(none) == [(), ()]
    assert [a["within_budget"] for a in none.plan()["auxiliaries"]] == [False, False]
    assert layers(planned(K=3, aux_rule="classifier_only", budget_bytes=10**9)) == [(), ()]


@pytest.mark.parametrize("temporal", SAME)
@pytest.mark.parametrize("rule", RULES)
def test_depth_is_monotone_in_the_budget_and_the_measured_bytes_stay_below_it(temporal, rule):
    """Measured again on real tensors: equal to what the ledger said under fake ones."""
    x, _ = batch(4)
    step_mode = "m" if temporal == "bptt" else "s"
    depths = []
    for budget in (60_000, 90_000, 120_000, 300_000, 600_000):
        method = planned(K=3, aux_rule=rule, temporal=temporal, budget_bytes=budget)
        model = net(over_time if temporal == "bptt" else per_step)
        functional.set_step_mode(model, step_mode)
        given = [(2, 8, 8), (4, 4, 4)]
        for part, shape, report in zip(method._parts, given, method.plan()["auxiliaries"], strict=False):
            traces = EligibilityTraces if temporal == "ottt" else None
            found = activation_bytes(part, shape, Setting.of(x, loss(), step_mode, traces))
            assert found == report["activation_bytes"]
            assert report["within_budget"] == (found <= budget)
            assert report["within_budget"] or not report["layers"]
        depths.append([len(chosen) for chosen in layers(method)])
    assert depths == sorted(depths)
    assert all(a <= b for one, two in pairwise(depths) for a, b in zip(one, two, strict=True))
    assert len({tuple(d) for d in depths}) > 1


def saved(T: int, autocast: bool = False, **options: Any) -> int:
    norm = over_time if options.get("temporal") == "bptt" else per_step
    found = track(stdl(**options), net(norm), *batch(T), autocast).saved_bytes
    assert found is not None
    return found


@pytest.mark.parametrize("temporal", ["sltt", "ottt"])
def test_saved_bytes_do_not_depend_on_time(temporal):
    assert len({saved(T, K=2, temporal=temporal) for T in (2, 5, 12)}) == 1
    assert stdl(temporal=temporal).flat_in_time
    assert not stdl(temporal="bptt").flat_in_time
    assert saved(12, K=2, temporal="bptt") > 4 * saved(2, K=2, temporal="bptt")


@pytest.mark.parametrize("temporal", SAME)
def test_saved_bytes_do_not_increase_with_subnetworks_that_end_in_a_classifier(temporal):
    found = [saved(4, K=K, temporal=temporal, aux_rule="classifier_only") for K in (1, 2, 3, 6)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.75 * found[0]


class Counting(Loss):
    """Bytes that autograd has saved when a backward starts, by storage."""

    def __init__(self) -> None:
        super().__init__("per_step", nn.CrossEntropyLoss())
        self.kept: dict[int, Tensor] = {}
        self.without: set[int] = set()
        self.found: list[int] = []

    def save(self, tensor: Tensor) -> Tensor:
        self.kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def leave_out(self, *tensors: Tensor) -> None:
        self.without |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def backward(self, value: Tensor) -> None:
        kept = [t for pointer, t in self.kept.items() if pointer not in self.without]
        self.found.append(sum(t.untyped_storage().nbytes() for t in kept))
        self.kept.clear()
        super().backward(value)


@pytest.mark.parametrize("T", [1, 2, 5])
def test_saved_bytes_of_eight_layers_with_linear_heads(T):
    """The fixture's net is not on record; this one has its numbers to the byte, for all K.

    8 x (linear 32 - 32, LIF with hard, detached reset), float64, N = 4, 3 classes; without weights, targets, and
    a subnetwork's input and output.
    """
    torch.manual_seed(0)
    node = lif(detach_reset=True)
    stages = [nn.Sequential(layer.Linear(32, 32, bias=False, step_mode="m"), node()) for _ in range(8)]
    plain = StagedModel(stages, layer.Linear(32, 3, step_mode="m"), "none").double()
    x, y = torch.rand(T, 4, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = []
    for K in (1, 2, 4, 8):
        method, model, objective = stdl(K=K, aux_rule="classifier_only"), copy.deepcopy(plain), Counting()
        method.prepare(model.train(), x, objective)
        for part in method._parts:
            part.body[0].register_forward_pre_hook(lambda _module, args, o=objective: o.leave_out(*args))
            part.body[-1].register_forward_hook(lambda _module, _args, out, o=objective: o.leave_out(out))
        objective.leave_out(y, *model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(objective.save, lambda tensor: tensor):
            method.step(model, x, y, objective, lambda: None)
        assert len(objective.found) == K * T
        found.append(max(objective.found))
    assert found == [23656, 11368, 5224, 2152]


@pytest.mark.parametrize("temporal", SAME)
@pytest.mark.parametrize("autocast", [False, True])
def test_fake_tensors_cost_the_same_bytes_and_choose_the_same_layers(temporal, autocast):
    norm = over_time if temporal == "bptt" else per_step
    x, y = batch(4)
    one, two = (stdl(K=3, budget_bytes=100_000, temporal=temporal) for _ in range(2))
    real = track(one, net(norm), x, y, autocast)
    model = net(norm)
    with FakeTensorMode() as mode:
        fake = track(two, convert(model, mode), mode.from_tensor(x), mode.from_tensor(y), autocast)
    assert one.plan() == two.plan()
    assert one.plan()["source"] == "measured"
    assert fake.peak_bytes == real.peak_bytes
    assert fake.split == real.split
    assert fake.saved_bytes == real.saved_bytes


def test_plan_is_json_and_is_replayed():
    method = planned(K=3, budget_bytes=120_000)
    plan = json.loads(json.dumps(method.plan()))
    assert plan["layers"] == [[0, 1], [2, 3], [4, 5]]
    chosen = plan["auxiliaries"][1]
    assert chosen["parameter_bytes"] == sum(p.nbytes for p in method._parts[1].tail.parameters())
    assert len(chosen["inputs"]) == len(chosen["layers"]) + 1
    again = stdl(K=3, budget_bytes=1)
    again.replay(plan)
    prepared(again, net(), batch(4)[0])
    assert layers(again) == layers(method)
    assert again.plan()["source"] == "replay"
    wrong = stdl(K=2)
    wrong.replay(plan)
    with pytest.raises(ValueError, match="the plan has 2 auxiliary networks; K = 2 needs 1"):
        prepared(wrong, net(), batch(4)[0])


def test_auxiliary_networks_copy_the_architecture_and_not_the_weights():
    method = stdl(K=2)
    model = prepared(method, net(dropout=True), batch(4)[0])
    copies = list(method._parts[0].tail)[:-1]
    originals = [list(model.stages)[n : n + 1] for n in (4, 6, 7)]
    assert len(copies) == 3
    for new, (old,) in zip(copies, originals, strict=True):
        assert [type(m) for m in new[0]] == [type(m) if not isinstance(m, layer.Dropout) else nn.Identity for m in old]
        assert new[0][0].weight.shape == old[0].weight.shape
        assert not torch.equal(new[0][0].weight, old[0].weight)
        assert 0.5 < float(new[0][0].weight.detach().std() / old[0].weight.detach().std()) < 2
        assert torch.equal(new[0][1].weight, torch.ones_like(new[0][1].weight))
        assert new[0][2] is not old[2]


def test_dropout_of_the_network_is_that_of_bptt():
    """Auxiliary networks draw no masks."""
    x, y = batch(4, dtype=torch.float64)
    method = stdl(K=3)
    ours = run(method, prepared(method, net(dropout=True).double(), x), x, y)
    bptt = run(BPTT(), prepared(BPTT(), net(dropout=True).double(), x), x, y)
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "model", "objective", "reason"),
    [
        ({"K": 7}, net(), loss(), "K is 7, but the model has 6 layers with parameters; allowed: 1 to 6"),
        ({}, net(), loss("time_mean"), "needs a per_step loss"),
        ({}, net(over_time), loss(), "the model's is over_time"),
        ({"temporal": "ottt"}, net(over_time), loss(), "the model's is over_time"),
    ],
)
def test_refuses(options, model, objective, reason):
    assert reason in str(stdl(**options).supports(model, objective))


def test_ottt_refuses_neurons_without_a_fixed_leak():
    model = net()
    model.stages[0][2] = plif()()
    assert "only LIFNode and IFNode have a fixed leak" in str(stdl(temporal="ottt").supports(model, loss()))
    assert stdl().supports(model, loss()) is None
