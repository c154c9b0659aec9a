"""Estimated work of a part: products and bytes, and nothing for questions about a tensor."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from methods._profile import FLOPS_PER_BYTE, seconds


def test_products_and_bytes_are_added_in_one_unit() -> None:
    a, b = torch.ones(4, 8), torch.ones(8, 16)
    assert seconds(lambda: a @ b) == 2 * 4 * 8 * 16 / FLOPS_PER_BYTE + a.nbytes + b.nbytes + 4 * 16 * 4


def test_asking_a_fake_tensor_for_its_device_costs_nothing() -> None:
    """Regression: the question is an operator under fake tensors, and counted as reading the tensor."""
    with FakeTensorMode():
        x = torch.empty(1000)
        asked: list[torch.device] = []

        def double() -> torch.Tensor:
            asked.append(x.device)
            return x + x

        assert seconds(double) == seconds(lambda: x + x) == 3 * x.nbytes
    assert asked == [torch.device("cpu")]


def test_views_cost_nothing() -> None:
    x = torch.ones(4, 8)
    assert seconds(lambda: x.view(32).unsqueeze(0).transpose(0, 1)) == 0
