"""Peak bytes of one method on one model at any T and N: from the ledger under fake tensors, or from small real runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from harness import predict, registry
from harness.build import PRECISIONS, Bench, Trainer, synthetic_batch
from harness.contracts import DataInfo, Method, StagedModel, Unsupported, reset_states
from harness.ledger import BLOCK, LedgerReport
from harness.memory import track
from harness.plan.hardware import DEFAULT, Hardware
from harness.plan.work import Work
from harness.spec import CellSpec, Ref


@dataclass(frozen=True)
class Subject:
    """What is planned for.

    Args:
        spec: model, data, T, batch, loss, recipe and precision; the method is filled in later.
        info: shape of the data.
        model: a model in memory, or None: the registry builds the spec's.
        works: work of a step of baselines that were predicted for the sake of another method, by name.
        hardware: what work is weighed as.
    """

    spec: CellSpec
    info: DataInfo
    model: StagedModel | None = None
    works: dict[str, float | None] = field(default_factory=dict, compare=False)
    hardware: Hardware = DEFAULT

    def cell(self, method: Ref, T: int, batch: int) -> CellSpec:
        """The spec of one prediction."""
        baseline = registry.plugin("methods", method.name).baseline
        return self.spec.model_copy(update={"method": method, "baseline": baseline, "T": T, "batch": batch})

    def copy(self, shared: bool) -> StagedModel:
        """The model in memory, for a method to rewrite.

        Args:
            shared: keep its parameters and buffers, because they become fake before anything runs.
        """
        assert self.model is not None
        reset_states(self.model)
        tensors = [*self.model.parameters(), *self.model.buffers()] if shared else []
        with unset_fake_temporarily():
            return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})

    def work(self) -> Work:
        """What counts the work of a step."""
        return Work(self.hardware, PRECISIONS[self.spec.precision].tf32)


@dataclass(frozen=True)
class Cost:
    """One training step of a method.

    Args:
        peak_bytes: most live bytes; with ``host_bytes`` where the device's memory is the host's.
        activation_bytes: the part of the peak that is neither parameter, gradient, optimizer, buffer nor input.
        fixed_bytes: live before the step without its inputs: what neither N nor T changes.
        host_bytes: copies in the host's memory.
        work: how much the step computes and moves (:class:`harness.plan.work.Work`); for a method whose step leaves work
            out under fake tensors its baseline's, or BPTT's if less, and what the method says it adds, or None.
        plan: what the method decided.
    """

    peak_bytes: int
    activation_bytes: int
    fixed_bytes: int
    host_bytes: int
    work: float | None
    plan: dict[str, Any] = field(default_factory=dict)


class Predictor:
    """Predictions for one method; each is a step under fake tensors.

    Args:
        subject: what is planned for.
        method: with its options.
        replayed: take the method's decisions at the subject's size for other sizes, too: to decide anew takes longer.
    """

    source = "predicted"
    fake = True
    """Nothing is computed, so no step has to come before the one that is counted."""

    def __init__(self, subject: Subject, method: Ref, replayed: bool = False) -> None:
        self.subject = subject
        self.method = method
        self.replayed = replayed
        self._plan: dict[str, Any] | None = None
        self._with_state: set[str] | None = None

    def base(self) -> Cost:
        """The subject's own T and N.

        Raises:
            Unsupported: the method cannot train this model.
        """
        spec = self.subject.cell(self.method, self.subject.spec.T, self.subject.spec.batch)
        work, stepped = self.subject.work(), set[str]()
        method, report, inputs = self._based(spec, work, stepped)
        if self._with_state not in (None, stepped):  # some parameters are never trained, and have no state
            self._with_state, work = stepped, self.subject.work()
            method, report, inputs = self._based(spec, work, set())
        self._plan = method.plan() if self.replayed else None
        return Cost(
            self._peak(report),
            report.activation_bytes,
            report.static_bytes - inputs,
            report.host_bytes,
            self._work(method, work, report.host_bytes),
            method.plan(),
        )

    def _based(self, spec: CellSpec, work: Work, stepped: set[str]) -> tuple[Method, LedgerReport, int]:
        """One step, its work, the names of what it trained, and the bytes of the input."""

        def settle(trainer: Any, bench: Bench) -> None:
            if self._with_state is None and self.fake:
                self._with_state = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
            self._settle(trainer, bench)
            trainer.begin(stepped)

        with self._bench(spec) as bench:
            method, report = self._track(bench, settle, partial(_Watched, work=work))
            return method, report, sum(_blocks(tensor) for tensor in bench.batch)

    def _work(self, method: Method, work: Work, host_bytes: int) -> float | None:
        if method.abridged is None or not self.fake:
            return work.total(host_bytes)
        added = method.added_work()
        bases = [self._base_work(name) for name in (method.baseline, self.subject.spec.method.name)]
        known = [work for work in bases if work is not None]
        return None if added is None or not known else min(known) + added

    def _base_work(self, name: str) -> float | None:
        """Work of a step of a baseline; None where it cannot train this model."""
        works = self.subject.works
        if name not in works:
            try:
                works[name] = Predictor(self.subject, Ref(name=name)).base().work if name != self.method.name else None
            except Unsupported:
                works[name] = None
        return works[name]

    def peak(self, T: int, batch: int) -> int:
        """Peak bytes at another size."""
        with self._bench(self.subject.cell(self.method, T, batch)) as bench:
            return self._peak(self._track(bench, self._settle)[1])

    def _peak(self, report: LedgerReport) -> int:
        """Where the host's memory is the device's, what waits there takes part; both peaks need not be at once."""
        return report.peak_bytes + (report.host_bytes if self.subject.hardware.bus is None else 0)

    @contextmanager
    def _bench(self, spec: CellSpec) -> Iterator[Bench]:
        info = self.subject.info
        with FakeTensorMode() as mode:
            batch = torch.empty(spec.T, spec.batch, *info.sample), torch.empty(spec.batch, dtype=torch.int64)
            source = None if self.subject.model is None else partial(self.subject.copy, shared=True)
            yield Bench(spec, info, batch, convert=partial(predict.convert, mode=mode), source=source)

    def _track(
        self, bench: Bench, settle: Callable[[Trainer, Bench], None], watch: Callable[[Trainer], Any] = lambda it: it
    ) -> tuple[Method, LedgerReport]:
        method: Method = registry.create("methods", self.method)
        if self._plan is not None:
            method.replay(self._plan)
        trainer = bench.trainer(method)
        return method, track(watch(trainer), bench, settle)

    def _settle(self, trainer: Trainer, bench: Bench) -> None:
        """Bring about the optimizer's state; where nothing else settles, without a step, which takes half the time."""
        if self._with_state is None or PRECISIONS[bench.spec.precision].autocast is not None:
            trainer.step(*bench.batch)
            return
        for name, parameter in trainer.model.named_parameters():
            if name in self._with_state:
                parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


class _Watched:
    """A trainer whose step is watched once :meth:`begin` was called; everything else is the trainer's own."""

    def __init__(self, trainer: Trainer, work: Work) -> None:
        self._trainer, self._work, self._begun = trainer, work, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def begin(self, stepped: set[str]) -> None:
        """Count from here on, and note what the optimizer is given gradients for."""
        names = {parameter: name for name, parameter in self._trainer.model.named_parameters()}

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            stepped.update(names[p] for p in parameters if p.grad is not None and p in names)

        self._begun = True
        self._trainer.optimizer.register_step_pre_hook(note)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """One step of the trainer."""
        with self._work if self._begun else nullcontext():
            return self._trainer.step(x, y)


class Measured(Predictor):
    """Small real steps on the CPU's ledger, for a model that fake tensors cannot run; other sizes are extrapolated.

    Bytes are bilinear in T and N where every operator's output is; the four sizes that run are named.
    """

    BATCHES = (1, 2)

    def __init__(self, subject: Subject, method: Ref) -> None:
        super().__init__(subject, method)
        half = max(1, subject.spec.T // 2)
        self.steps = (half, max(2, subject.spec.T))
        self._costs: dict[tuple[int, int], Cost] = {}

    @property
    def source(self) -> str:  # type: ignore[override]
        """What ran."""
        return f"measured on the CPU at T={self.steps[0]},{self.steps[1]} N={self.BATCHES[0]},{self.BATCHES[1]}"

    def base(self) -> Cost:
        """See :meth:`Predictor.base`; extrapolated from the small runs."""
        T, N = self.subject.spec.T, self.subject.spec.batch
        for steps in self.steps:
            for batch in self.BATCHES:
                self._costs[steps, batch] = self._run(steps, batch)
        fixed = self._costs[self.steps[0], self.BATCHES[0]].fixed_bytes
        at = {name: self._at(name, T, N) for name in ("peak_bytes", "activation_bytes", "host_bytes", "work")}
        return Cost(
            math.ceil(at["peak_bytes"]), math.ceil(at["activation_bytes"]), fixed, math.ceil(at["host_bytes"]),
            at["work"],
        )  # fmt: skip

    def peak(self, T: int, batch: int) -> int:
        """See :meth:`Predictor.peak`; extrapolated."""
        return math.ceil(self._at("peak_bytes", T, batch))

    def _run(self, steps: int, batch: int) -> Cost:
        spec = self.subject.spec.model_copy(update={"T": steps, "batch": batch})
        return _Real(replace(self.subject, spec=spec, works={}), self.method).base()

    def _at(self, name: str, T: int, N: int) -> float:
        (s, t), (a, b) = self.steps, self.BATCHES
        value = {key: float(getattr(cost, name)) for key, cost in self._costs.items()}
        along = {k: value[s, k] + (value[t, k] - value[s, k]) * (T - s) / (t - s) for k in (a, b)}
        return along[a] + (along[b] - along[a]) * (N - a) / (b - a)


class _Real(Predictor):
    """A real step on the CPU in the place of a fake one."""

    fake = False

    @contextmanager
    def _bench(self, spec: CellSpec) -> Iterator[Bench]:
        batch = synthetic_batch(self.subject.info, spec)
        source = None if self.subject.model is None else partial(self.subject.copy, shared=False)
        yield Bench(spec, self.subject.info, batch, source=source)


def _blocks(tensor: torch.Tensor) -> int:
    return -(-tensor.untyped_storage().nbytes() // BLOCK) * BLOCK
