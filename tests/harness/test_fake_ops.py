"""Operators under fake tensors, remembered: every storage lives and dies as without memory."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from harness import fake_ops, predict
from harness.api import cell
from harness.ledger import Ledger

SHAPE = {"name": "shape", "sample": [1, 8, 8], "classes": 10}
NET = {"name": "convnet", "channels": [4, 8]}


def plainly(func, args, kwargs):
    return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(fake_ops, "_ENTRIES", {})


@pytest.mark.parametrize("way", ["bptt", "bptt-fused", "checkpoint-compress", "streamed", "micro-batch"])
def test_a_step_has_the_same_timeline(way, monkeypatch):
    spec = cell(way, NET, SHAPE, predicted=True, phases=("memory",), T=3, batch=4)
    remembered = predict.predict(spec)[1]
    assert any(fake_ops._ENTRIES.values())
    monkeypatch.setattr(fake_ops, "call", plainly)
    plain = predict.predict(spec)[1]
    assert remembered.timeline == plain.timeline
    assert remembered.split == plain.split
    assert remembered.lives == plain.lives


def gives(run, *made):
    """What a function gives when its operators are known already, and the ledger's timeline."""
    for _ in range(2):
        ledger = Ledger(device=made[0].fake_device.type if isinstance(made[0], FakeTensor) else made[0].device.type)
        ledger.register("inputs", made)
        with ledger:
            out = run(*made)
    return out, ledger.report().timeline


@pytest.mark.parametrize("where", ["fake", "meta"])
def test_arguments_views_and_new_tensors(where):
    with FakeTensorMode() if where == "fake" else torch.device("meta"):
        x, w = torch.empty(4, 6), torch.empty(6)
        assert gives(lambda x, w: x.add_(w), x, w)[0] is x
        assert gives(lambda x, w: torch.mul(x, w, out=x), x, w)[0] is x
        part, timeline = gives(lambda x: x[1:, 2], x)
        assert (part.shape, part.stride(), part.storage_offset()) == ((3,), (6,), 8)
        assert part.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert len(timeline) == 1
        other, _ = gives(lambda x: x[2:, 3], x)
        assert other.storage_offset() == 15
        new, timeline = gives(lambda x: x.t() * 2, x)
        assert (new.shape, new.stride(), new.dtype) == ((6, 4), (1, 6), torch.float32)
        assert timeline[-1] - timeline[0] == 512
        assert gives(lambda x: x > 1, x)[0].dtype is torch.bool
        assert (gives(lambda x: x * 2, x.int())[0].dtype, gives(lambda x: x * 2.0, x.int())[0].dtype) == (
            torch.int32,
            torch.float32,
        )
        assert [part.storage_offset() for part in gives(lambda x: x.unbind(), x)[0]] == [0, 6, 12, 18]


def test_an_argument_that_changes_is_never_remembered():
    with FakeTensorMode():
        for _ in range(2):
            x, y = torch.empty(4), torch.empty(10)
            with Ledger():
                x.set_(y)
                assert x.untyped_storage()._cdata == y.untyped_storage()._cdata
                x.resize_(20)
            assert x.shape == (20,)


def test_real_values_are_computed_and_gradients_reach_fake_parameters():
    ledger = Ledger()
    with ledger:
        assert [float((torch.ones(2) * k).sum()) for k in (1, 2, 3)] == [2, 4, 6]
    with FakeTensorMode():
        net = nn.Linear(3, 2)
        for _ in range(2):
            net.zero_grad()
            with Ledger(net):
                net(torch.empty(5, 3)).relu().sum().backward()
        assert isinstance(net.weight.grad, FakeTensor)
        assert net.weight.grad.shape == (2, 3)
