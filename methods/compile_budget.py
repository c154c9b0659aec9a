"""``torch.compile`` with its activation-memory budget: the compiler decides what to keep and what to compute again.

The forward is compiled together with its backward. Of all intermediates ``i`` with ``b_i`` bytes that the backward could
use, it keeps those with ``k_i = 1`` and computes the others again::

    minimise  sum_i (1 - k_i) cost_i     such that     sum_i k_i b_i  <=  budget * sum_i b_i

where 1 is what the compiler keeps when it saves time only, and 0 the inputs of the compiled region alone
(``torch._functorch.config.activation_memory_budget``; solved as a knapsack, ``cost_i`` from operation counts). The limit
is on what is saved, not on the peak: what is computed again lives in the backward. With the ``inductor`` backend chains
of elementwise operators, so the neuron over all ``T`` steps, become fused kernels that need a compiler: C++ for a CPU,
Triton for a GPU. Its gradient is BPTT's up to the rounding of reordered sums.

The loop over ``T`` is unrolled, so the first step compiles for seconds to minutes, longer for a longer sequence; the
plan says how long.

* Random numbers are eager torch's, so dropout draws BPTT's masks: compiled kernels would draw from a generator of their
  own. What is drawn is always kept. Left to itself the solver counts it as free to draw again, and on a CPU the backward
  then gets another mask: half of a gradient was wrong where a float64 mask was the largest thing to keep.
* Hooks of the model's modules do not run: code compiled with them would be another program than the one that trains.
* Under a dispatch mode torch runs the eager code instead, without a word; here that is an error. So the ledger cannot
  count a step, nothing is predicted, and memory is left to the allocators.

Stored: what the solver keeps; with ``T`` it grows as BPTT does.

Needs from the model: nothing. What the compiler cannot trace runs eagerly between compiled pieces; the plan counts them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointPolicy

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput


class CompileBudgetOptions(Options):
    """Options of :class:`CompileBudget`.

    Attributes:
        budget: fraction of the activations that may be kept, above 0 and at most 1.
        backend: ``inductor`` makes fused kernels; ``aot_eager_decomp_partition`` honours the budget without a compiler,
            and runs the operators one by one, slower than eager code.
    """

    budget: float = Field(0.5, gt=0.0, le=1.0)
    backend: Literal["inductor", "aot_eager_decomp_partition"] = "inductor"


class CompileBudget(Method):
    """BPTT whose forward and backward are compiled under a memory budget."""

    name = "compile-budget"
    summary = "torch.compile with its activation-memory budget: the compiler chooses what to recompute"
    paper = "-"
    gradient = "exact"
    ledger = "torch.compile falls back to eager code under a dispatch mode, so counting would count another program"
    options: ClassVar[type[CompileBudgetOptions]] = CompileBudgetOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._forward: Callable[[Tensor], Tensor] | None = None
        self._plan: dict[str, Any] = {}

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or that nothing here can compile."""
        if torch._dynamo.config.disable:
            return "torch.compile is switched off here (TORCH_COMPILE_DISABLE)"
        device = next((p.device.type for p in model.parameters()), "cpu")
        return missing_compiler(device) if self.opt.backend == "inductor" else None

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Nothing is rewritten, and nothing compiled before the first step.

        What was compiled before in this process is forgotten: torch shares compiled code between models of one class,
        and after a few of them would run the next one eagerly.
        """
        torch._dynamo.reset()
        self._forward = torch.compile(model.forward, backend=self.opt.backend, dynamic=False)
        self._plan = {}
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; the first one compiles.

        Raises:
            RuntimeError: nothing was compiled, or a dispatch mode is active.
        """
        if self._forward is None:
            raise RuntimeError("step before prepare: nothing has been compiled")
        if _get_current_dispatch_mode_stack():
            raise RuntimeError(f"a dispatch mode is active: {self.ledger}")
        with _settings(self.opt.budget), self._watched():
            with _hookless(model):
                logits = self._forward(x)
            value = loss(logits, y)
            loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def plan(self) -> dict[str, Any]:
        """``graphs``: compiled pieces; ``breaks``: why there are several; ``first_step_s``: seconds of the first step.

        Empty before the first step.
        """
        return self._plan

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Take down what the first step compiled."""
        if self._plan:
            yield
            return
        counters = torch._dynamo.utils.counters
        graphs, breaks, begin = counters["stats"]["unique_graphs"], dict(counters["graph_break"]), time.perf_counter()
        yield
        made = counters["stats"]["unique_graphs"] - graphs
        if made == 0:
            raise RuntimeError("torch.compile compiled nothing: it ran the eager code")
        reasons = [reason for reason, count in counters["graph_break"].items() if count > breaks.get(reason, 0)]
        self._plan = {"graphs": made, "breaks": reasons, "first_step_s": time.perf_counter() - begin}


def missing_compiler(device: str) -> str | None:
    """None, or why the ``inductor`` backend cannot make kernels for ``device``."""
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "torch.compile needs a C++ compiler on a CPU, and none is found (install g++, or set CXX)"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else f"torch.compile needs Triton on {device}, and it is not usable here"


def _keep_draws(joint: torch.fx.GraphModule, _inputs: Any) -> torch.fx.GraphModule:
    """Mark everything random in the joint graph of forward and backward as to be kept."""
    for node in joint.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return joint


@contextlib.contextmanager
def _settings(budget: float) -> Iterator[None]:
    """The compilers' settings, in force when forward and backward are compiled."""
    with (
        # The cache of joint graphs does not look at the pass, and could hand out a graph made without it.
        torch._functorch.config.patch(
            activation_memory_budget=budget, joint_custom_pass=_keep_draws, enable_autograd_cache=False
        ),
        # Eager random numbers; and no pool of compiler processes beside a measurement.
        torch._inductor.config.patch(fallback_random=True, compile_threads=1),
        # Better an error than eager code under this method's name.
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, suppress_errors=False),
    ):
        yield


@contextlib.contextmanager
def _hookless(root: nn.Module) -> Iterator[None]:
    """Without the forward hooks below ``root``."""
    tables = [t for m in root.modules() for t in (m._forward_hooks, m._forward_pre_hooks) if t]
    contents = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, content in zip(tables, contents, strict=True):
            table.update(content)
