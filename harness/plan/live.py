"""The planner on a model in memory: ``plan = snnbench.plan(model, ...); model = plan.apply(model)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import registry
from harness.contracts import Loss, Method, StagedModel, StepOutput, Unsupported, reset_states
from harness.errors import UsageError
from harness.plan.adopting import Decision, adopt, copied, decide
from harness.plan.answer import Answer, reference_of
from harness.plan.candidates import budgeted, chosen, evaluate, share_limits
from harness.plan.hardware import DEFAULT, named
from harness.plan.planning import optimizer_bytes, shape_ref, subject_spec
from harness.plan.predictor import Subject
from harness.plan.size import Budget
from harness.spec import Ref

UNLIMITED = 2**62
"""Bytes of a device when nothing was said of it."""


class _LogitsError(Exception):
    """Leaves a method's step once its logits are there, as torch's checkpoint leaves a recompute; no error."""


class _Catch(Loss):
    """Stands for the objective inside a method's step, and ends the step with the logits."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind, lambda logits, target: logits)
        self.logits: Tensor | None = None
        self.stepwise = False

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        self.logits = logits
        raise _LogitsError

    def at_step(self, logits: Tensor, target: Tensor, steps: int) -> Tensor:
        self.stepwise = True
        raise _LogitsError


class Applied(nn.Module):
    """A model prepared by a method, for a training loop of one's own.

    In training ``forward`` gives logits ``[T, N, K]`` whose ``backward`` is the method's; states are reset before. In
    evaluation it is the model itself. It shares its parameters with the model that it was made from, whose state_dict
    therefore keeps its keys and holds what was learnt.

    Args:
        method: has prepared ``model``.
        model: the prepared model.
        loss: kind of objective that the method was prepared for.
        squeeze: the original gives ``[N, K]``, and so does this.
        frame: shape and number of frames, where the original takes one frame ``[N, ...]`` and repeats it.
    """

    def __init__(
        self,
        method: Method,
        model: StagedModel,
        loss: Loss,
        squeeze: bool = False,
        frame: tuple[tuple[int, ...], int] | None = None,
    ) -> None:
        super().__init__()
        self.prepared = model
        self._method, self._loss, self._squeeze, self._frame = method, loss, squeeze, frame

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[T, N, K]`` of ``x [T, N, ...]``; ``[N, K]`` where the original gives these.

        A model that takes one frame ``[N, ...]`` and repeats it takes that here, too.

        Raises:
            Unsupported: the method's backward is no backward of a loss on these logits; use :meth:`step`.
        """
        reset_states(self.prepared)
        x = self._sequence(x)
        logits = self._logits(x) if self.training and torch.is_grad_enabled() else self.prepared(x)
        return logits.squeeze(0) if self._squeeze else logits

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> StepOutput:
        """One whole training step by the method's own rule: works for every method.

        Args:
            x: ``[T, N, ...]``.
            y: ``[N]``.
            optimizer: stepped, once or at every time step, as the method asks for.
            criterion: on logits ``[n, K]`` and targets ``[n]``, a mean over ``n``.
        """

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        reset_states(self.prepared)
        optimizer.zero_grad(set_to_none=True)
        return self._method.step(self.prepared, self._sequence(x), y, Loss(self._loss.kind, criterion), update)

    def finish(self) -> nn.Module:
        """The plain model for evaluation, without what the method added."""
        return self._method.finish(self.prepared)

    def _sequence(self, x: Tensor) -> Tensor:
        """A frame as a sequence, without taking more memory."""
        if self._frame is None or x.dim() != len(self._frame[0]) + 1:
            return x
        return x.expand(self._frame[1], *x.shape)

    def _logits(self, x: Tensor) -> Tensor:
        if self._method.gradient != "exact":
            raise self._refusal()
        catch = _Catch(self._loss.kind)
        target = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
        try:
            self._method.step(self.prepared, x, target, catch, _no_update)
        except _LogitsError as caught:
            caught.__traceback__ = None  # its frames hold the step's tensors
        logits = catch.logits
        whole = (
            logits is not None and logits.grad_fn is not None and logits.dim() == 3 and logits.shape[1] == x.shape[1]
        )
        if catch.stepwise or not whole or logits is None:
            raise self._refusal()
        return logits

    def _refusal(self) -> Unsupported:
        return Unsupported(
            f"{self._method.name} has a training step of its own, which is no backward of one loss on all logits: "
            "call .step(x, y, optimizer, criterion) in place of forward and backward"
        )


def _no_update() -> None:
    raise AssertionError("update() before the loss")


@dataclass(frozen=True, kw_only=True)
class LivePlan(Answer):
    """An answer about a model in memory, which can be applied to it.

    Args:
        decision: how the model runs and whether it has stages.
        stages: globs of module names that are stages, as given.
    """

    decision: Decision
    stages: str | None = None

    def apply(self, model: nn.Module, method: str | None = None, example: Tensor | None = None) -> Applied:
        """Prepare ``model`` for training by a method; its running statistics stay as they are.

        Args:
            model: the one that was planned for, or another of its kind; its modules are rewritten in place and put into
                multi-step mode.
            method: name or label of a row; default: the recommended one.
            example: a batch ``[T, N, ...]`` of the data, for methods that look at one (``sj-memopt`` takes what is
                binary in it for binary ever after); default: uniform noise.

        Raises:
            ValueError: no method is recommended, and none was named.
            KeyError: there is no such row.
            Unsupported: the method cannot train this model.
        """
        row = self.recommended if method is None else self.row(method)
        if row is None:
            raise ValueError(f"{self.why}; name one: apply(model, method=...)")
        chosen_method: Method = registry.create("methods", row.method)
        loss = Loss(self.spec.loss.kind, nn.CrossEntropyLoss())
        training = model.training
        staged = adopt(model, self.decision, self.stages)
        reset_states(staged.model)
        reason = chosen_method.supports(staged.model, loss)
        if reason is not None:
            raise Unsupported(reason)
        if example is None:
            shape = self.spec.T, self.spec.batch, *_sample(self.spec.data)
            example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            example = example.to(next(model.parameters(), example).device)
        with _buffers_kept(model):
            prepared = chosen_method.prepare(staged.model.train(), example, loss)
        reset_states(prepared)
        frame = (_sample(self.spec.data), self.decision.steps) if self.decision.way == "static" else None
        return Applied(chosen_method, prepared, loss, staged.time_mean, frame).train(training)


def plan(
    model: nn.Module,
    input: Sequence[int],
    budget: str | int | None = None,
    *,
    methods: Sequence[str] | None = None,
    loss: str = "per_step",
    optimizer: str = "sgd",
    precision: str = "fp32",
    reserve: str | int | None = None,
    stages: str | None = None,
    limits: bool = False,
    hardware: str | None = None,
) -> LivePlan:
    """Predict every method's memory on a model in memory; nothing is trained and no GPU is needed.

    Args:
        model: any ``nn.Module`` that takes ``[T, N, ...]``, or ``[N, ...]`` step by step; it is not changed.
        input: ``(T, N, C, H, W)``, or ``(T, N, features)``.
        budget: the device's memory, e.g. ``"8GiB"``; None: that of ``hardware``, or no limit.
        methods: names, with options as ``name:option=value``; None: all that are installed.
        loss: ``per_step`` or ``time_mean``; a model that gives ``[N, K]`` has the latter.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        precision: as in a cell.
        reserve: part of the budget that is not for tensors; None: 768 MiB and 5 % of the budget.
        stages: globs of module names that are stages, separated by commas; None: they are found.
        limits: also look for the largest batch and T, which takes some more predictions a method.
        hardware: what slow-downs are weighed as, a name of :data:`harness.plan.hardware.HARDWARE`, e.g. ``"rtx-4090"``;
            nothing runs there. None: ``a100-40gb``.

    Raises:
        UsageError: a wrong argument, or the model does not run on this input.

    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(8, 16), neuron.LIFNode(), layer.Linear(16, 3))
    >>> found = plan(net, input=(4, 2, 8), budget="2GiB", methods=["bptt", "checkpoint"])
    >>> found.recommended.label
    'bptt'
    """
    if len(input) < 3 or any(not isinstance(size, int) or size < 1 for size in input):
        raise UsageError(f"input {tuple(input)}: allowed are whole numbers from 1 on: T, N, and a sample's shape")
    T, N, *sample = input
    weighed = None if hardware is None else named(hardware, "hardware")
    if budget is None and weighed is not None:
        budget = weighed.memory_bytes
    limit = None if budget is None else Budget.of(budget, reserve)
    available = UNLIMITED if limit is None else limit.available_bytes
    chosen(methods, None)  # a wrong name is told before anything runs
    reset_states(model)
    own = copied(model)
    with torch.enable_grad() if not torch.is_grad_enabled() else nullcontext():
        decision = decide(copied(own), tuple(sample), T, stages)
        staged = adopt(own, decision, stages)
        kind = "time_mean" if staged.time_mean else loss
        data = shape_ref(sample, decision.classes, "input")
        name = type(model).__name__
        spec = subject_spec(Ref(name="user", options={"factory": name}), data, T, N, precision, optimizer, kind)
        info = registry.create("datasets", data).info()
        subject = Subject(spec, info, staged.model, hardware=weighed or DEFAULT)
        wanted = chosen(methods, None if limit is None else available - optimizer_bytes(staged.model, spec))
        rows = share_limits([evaluate(subject, ref, available, limits and not budgeted(ref)) for ref in wanted])
        reference = reference_of(rows) or evaluate(subject, spec.method, available, False)
    notes = tuple(staged.notes)
    return LivePlan(spec, limit, rows, reference, remarks=notes, hardware=weighed, decision=decision, stages=stages)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)


def _sample(data: Ref) -> tuple[int, ...]:
    return tuple(data.options["sample"])  # type: ignore[arg-type]
