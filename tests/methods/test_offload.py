"""Offload: gradients equal to the bit, no copy mistaken for another, device down and host up."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from harness.host import HostPeak
from harness.ledger import Ledger
from harness.memory import track as measure
from methods.bptt import BPTT
from methods.offload import Copy, HostPool, Offload, _named
from tests.harness.benches import make_bench, make_spec
from tests.methods.nets import batch, build, no_norm, prepared, run
from tests.methods.test_exactness import NETS
from tests.methods.test_memory import deep, track


@pytest.mark.parametrize("net", NETS)
def test_gradients_are_equal_to_the_bit(net):
    for dtype in (torch.float32, torch.bfloat16):
        x, y = batch(dtype=dtype)
        model = NETS[net]().to(dtype)
        reference, method = copy.deepcopy(model), Offload()
        ours = run(method, prepared(method, model, x), x, y)
        bptt = run(BPTT(), reference.train(), x, y)
        assert ours.gradients.keys() == bptt.gradients.keys()
        assert all(torch.equal(ours.gradients[name], g) for name, g in bptt.gradients.items())
        assert torch.equal(ours.out.logits, bptt.out.logits)
        assert all(torch.equal(ours.buffers[name], value) for name, value in bptt.buffers.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_equal_to_the_bit(dtype):
    x, y = batch()
    results = []
    for kind in (BPTT, Offload):
        model, instance = build(), kind()
        prepared(instance, model, x)
        with torch.autocast("cpu", dtype=dtype):
            results.append(run(instance, model, x, y).gradients)
    assert all(torch.equal(results[0][name], g) for name, g in results[1].items())


def test_a_freed_tensor_is_not_mistaken_for_the_next_at_its_address():
    """Regression: copies kept by address gave wrong gradients, because allocators hand freed addresses out again."""
    pool, kept, addresses = HostPool([]), [], set()
    for value in range(50):
        tensor = torch.full((4096,), float(value))
        addresses.add(tensor.data_ptr())
        kept.append(pool.pack(tensor))
        del tensor
    assert len(addresses) < 50, "no address was used twice: the test has lost its point"
    assert [float(pool.unpack(one)[0]) for one in kept] == [float(value) for value in range(50)]


def test_what_was_overwritten_since_is_copied_again():
    pool, x = HostPool([]), torch.zeros(8)
    before = pool.pack(x)
    x.add_(1.0)
    after = pool.pack(x)
    assert float(pool.unpack(before).sum()) == 0.0
    assert float(pool.unpack(after).sum()) == 8.0


def test_what_two_operators_save_is_copied_once_and_parameters_never():
    weight, x = torch.randn(4, 6, requires_grad=True), torch.randn(3, 4, 6)
    pool = HostPool([weight])
    assert pool.pack(weight) is weight
    assert pool.pack(weight[1:]).data_ptr() == weight[1:].data_ptr()
    one, same, part, turned = (pool.pack(t) for t in (x, x.detach(), x[1], x.transpose(0, 1)))
    assert isinstance(one, Copy)
    assert one is same
    assert len({id(k) for k in (one, part, turned)}) == 3
    assert pool.copied_bytes == x.nbytes + x[1].nbytes + x.nbytes
    assert torch.equal(pool.unpack(part), x[1])
    back = pool.unpack(turned)
    assert torch.equal(back, x.transpose(0, 1))
    assert back.stride() == x.transpose(0, 1).stride()
    assert back.data_ptr() != one.tensor.data_ptr()


def test_copies_die_with_the_graph():
    pool, x = HostPool([]), torch.randn(64, 64, requires_grad=True)
    ledger = Ledger()
    with ledger:
        with saved_tensors_hooks(pool.pack, pool.unpack):
            out = x.exp().square().sum()
        assert ledger.host_live == x.nbytes  # both operators save the exponential
        out.backward()
        assert ledger.host_live == 0
    assert torch.allclose(x.grad, 2 * (2 * x.detach()).exp())


def test_many_steps_stay_equal():
    """Graphs, copies and addresses come and go."""
    weights = []
    for kind in (BPTT, Offload):
        model, method = build(), kind()
        prepared(method, model, batch()[0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(5):
            x, y = batch(seed=seed)
            step = run(method, model, x, y)
            for name, parameter in model.named_parameters():
                parameter.grad = step.gradients[name]
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_the_device_holds_less_and_the_host_the_rest(autocast):
    x, y = batch(16)
    bptt, ours = track(BPTT(), deep(), x, y, autocast), track(Offload(), deep(), x, y, autocast)
    assert bptt.host_bytes == 0
    assert ours.peak_bytes < 0.7 * bptt.peak_bytes
    assert ours.saved_bytes < 0.2 * bptt.saved_bytes
    assert ours.host_bytes > 0.7 * bptt.saved_bytes
    assert sum(ours.split.values()) == ours.peak_bytes


def test_the_host_peak_of_the_process_rises_by_the_copies():
    """On a CPU device and host are one memory: the copies come on top, for as long as a layer's originals live."""
    size, layers, peaks = 32 << 20, 6, {}
    for offloaded in (False, True):
        pool, originals = HostPool([]), [torch.ones(size // 4, requires_grad=True)]
        hooks = saved_tensors_hooks(pool.pack, pool.unpack) if offloaded else nullcontext()
        gc.collect()
        with HostPeak() as peak, hooks:
            for _ in range(layers):
                originals.append(originals[-1].sin())
        peaks[offloaded] = peak.bytes
    if peaks[False] is None:
        pytest.skip("VmHWM cannot be reset here")
    assert pool.copied_bytes == layers * size
    assert peaks[True] - peaks[False] == pytest.approx(pool.copied_bytes, rel=0.1)


def test_a_measured_step_splits_what_lives_between_device_and_host():
    bptt, ours = (measure(make_bench(make_spec(m)).trainer(), make_bench(make_spec(m))) for m in ("bptt", "offload"))
    assert bptt.host_bytes == 0 < ours.host_bytes
    assert ours.peak_bytes < bptt.peak_bytes


def test_the_plan_says_that_it_is_emulated():
    x, y = batch()
    model, method = build(norm=no_norm), Offload()
    assert method.plan() == {}
    run(method, prepared(method, model, x), x, y)
    plan = method.plan()
    assert plan["host"] == "emulated on CPU"
    first = plan["host_bytes"]
    run(method, model, x, y)
    assert method.plan()["host_bytes"] == first > 0


def test_copies_of_torchs_own_hooks_are_named_to_the_ledger():
    """``save_on_cpu`` copies nothing here; a hook that does stands for what it does on a GPU."""
    hooks = save_on_cpu(pin_memory=False)
    hooks.pack_hook = lambda tensor: (tensor.device, tensor.clone())
    x, ledger = torch.randn(64, 64, requires_grad=True), Ledger(device="cuda")
    with ledger:
        with _named(hooks):
            out = x.exp().sum()
        assert ledger.host_live == x.nbytes
        out.backward()
    assert torch.equal(x.grad, x.detach().exp())
    assert ledger.report().peak_bytes == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin_memory", [True, False])
def test_on_cuda_torchs_own_offload_runs(pin_memory):
    x, y = (t.cuda() for t in batch())
    model, method = build().cuda(), Offload(Offload.options(pin_memory=pin_memory))
    reference = copy.deepcopy(model)
    ours = run(method, prepared(method, model, x), x, y)
    bptt = run(BPTT(), reference.train(), x, y)
    error = max(float((ours.gradients[name] - g).abs().max()) for name, g in bptt.gradients.items())
    assert error <= 1e-5
    assert method.plan()["host"].startswith("torch.autograd.graph.save_on_cpu")
