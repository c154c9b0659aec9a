"""The reversible node's claim: a gradient from the inverse's own graph is faster than inverse and forward again.

The paper says 23.8 % less training time. Every round times both backwards of the same node on the same input, one after
the other, so that drift of the machine's speed cancels; the ratio is the median over the rounds.
"""

import time
from statistics import median

import pytest
import torch
from spikingjelly.activation_based import surrogate

from methods.kernels.reversible import Layout, ReversibleLIFNode
from methods.kernels.reversible_torch import Coefficients

PAPER = 1 - 0.238
"""Time of the inverse-graph gradient over inverse + re-forward (arXiv 2308.08649, abstract)."""
ROUNDS, WARM = 10, 2
SHAPES = {"small": (16, 8, 256), "medium": (16, 16, 2_048), "large": (8, 32, 8_192)}


class Layer:
    """One node with its input; times of its forwards and backwards."""

    def __init__(self, backward, shape):
        draw = torch.Generator().manual_seed(0)
        self.x, self.weight = (torch.randn(shape, generator=draw) for _ in range(2))
        constants = Coefficients(2.0, 0.5, 0.1, 1.0, surrogate.ATan())
        self.node = ReversibleLIFNode(constants, Layout(2, -1), backward)
        self.forward, self.backward = [], []

    def step(self):
        """A whole training step of the node."""
        self.node.reset()
        x = self.x.requires_grad_()
        x.grad = None
        begin = time.perf_counter()
        y = self.node(x)
        middle = time.perf_counter()
        y.backward(self.weight)
        self.forward.append(middle - begin)
        self.backward.append(time.perf_counter() - middle)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inverse_graph_against_inverse_and_reforward(benchmark, shape):
    torch.set_num_threads(1)
    usual, ours = Layer("reforward", shape), Layer("inverse_graph", shape)
    # The setup of a round is the other side's step: each round is a pair.
    benchmark.pedantic(ours.step, setup=usual.step, rounds=ROUNDS, warmup_rounds=WARM)
    pairs = list(zip(ours.forward, ours.backward, usual.forward, usual.backward, strict=True))[WARM:]
    backward = median(mine / other for _, mine, _, other in pairs)
    step = median((f + b) / (g + d) for f, b, g, d in pairs)
    ratios = {"backward_ratio": backward, "step_ratio": step, "paper_step_ratio": PAPER}
    benchmark.extra_info.update(ratios, shape=list(shape), rounds=len(pairs))
    print(f"\n{shape}: inverse graph / re-forward: backward {backward:.3f}, step {step:.3f}; paper {PAPER:.3f}")
    assert backward < 0.9
    assert step < 0.95
    assert torch.allclose(ours.x.grad, usual.x.grad, rtol=1e-4, atol=1e-6)
