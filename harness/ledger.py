"""The ledger: exact live bytes of tensors, operator by operator.

A dispatch mode notes every new storage, rounded up to 512 bytes as CUDA's caching allocator does (``kMinBlockSize`` in
``c10/cuda/CUDACachingAllocator``), and a weak reference notes its end. It is deterministic and counts the same on CPU,
CUDA and fake tensors. It cannot see library workspaces, fragmentation or the CUDA context.

What a storage *is* gets decided afterwards, from the log:

* ``parameters``, ``buffers``, ``optimizer``, ``inputs``: registered before the step;
* ``gradients``: became a parameter's ``.grad``;
* ``activations``: made outside the backward and still alive when the next backward starts;
* ``temporaries``: everything else.

Copies that a method keeps in the host's memory are made inside :func:`host` and reported apart.
"""

from __future__ import annotations

import bisect
import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import fake_ops
from harness.module_trace import ModuleTrace, Origin

BLOCK = 512
"""Granularity in bytes: ``kMinBlockSize`` of torch's CUDA caching allocator."""

Category = Literal["parameters", "buffers", "gradients", "optimizer", "inputs", "activations", "temporaries"]
CATEGORIES: tuple[Category, ...] = (
    "parameters", "buffers", "gradients", "optimizer", "inputs", "activations", "temporaries",
)  # fmt: skip

_HOST: ContextVar[bool] = ContextVar("host", default=False)
_KERNEL: ContextVar[Kernel | None] = ContextVar("kernel", default=None)

_BATCH_NORM = {
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten._native_batch_norm_legit.no_stats,
}


@contextlib.contextmanager
def host() -> Iterator[None]:
    """New CPU storages are copies in the host's memory: counted as ``LedgerReport.host_bytes``, not as the device's.

    Where the device under the ledger is the CPU itself, this is all that tells the two apart.

    >>> ledger = Ledger()
    >>> with ledger:
    ...     x = torch.ones(256)
    ...     with host():
    ...         copy = x.clone()
    >>> ledger.report().peak_bytes, ledger.report().host_bytes
    (1024, 1024)
    """
    token = _HOST.set(True)
    try:
        yield
    finally:
        _HOST.reset(token)


@dataclass(eq=False)
class Kernel:
    """One run of a kernel: the bytes that it reads and writes."""

    bytes: int


@contextlib.contextmanager
def kernel(size: int) -> Iterator[None]:
    """Operators inside stand for one kernel that reads and writes ``size`` bytes.

    For estimates of work alone, which take a torch fallback for what it stands for; live bytes are counted as ever.
    """
    token = _KERNEL.set(Kernel(size))
    try:
        yield
    finally:
        _KERNEL.reset(token)


def inside() -> Kernel | None:
    """The kernel that operators stand for now, or None."""
    return _KERNEL.get()


@dataclass
class _Block:
    """One storage's life: sizes in bytes, times in event numbers."""

    bytes: int
    born: int
    module: str
    origin: Origin
    tag: Category | None = None
    output: bool = False
    host: bool = False
    died: int | None = None

    def alive(self, event: int) -> bool:
        """True right after ``event`` happened."""
        return self.born <= event and (self.died is None or self.died > event)


@dataclass(frozen=True)
class LedgerReport:
    """What one tracked region cost, all in bytes.

    Args:
        peak_bytes: the most that was live at once.
        static_bytes: registered before the region.
        saved_bytes: live when a backward started, less what was live before the region, gradients and logits; the
            largest over all backwards. None where no backward ran.
        split: the peak by category; the values add up to ``peak_bytes``.
        by_module: ``(module, origin, bytes)`` live at the peak and made in the region, largest first.
        host_bytes: the most that was live at once of what was made inside :func:`host`; no part of ``peak_bytes``.
        timeline: live bytes after each event.
        lives: ``(bytes, born, died)`` of every storage on the device, with times in events; born 0: before the region,
            died None: alive at its end.
    """

    peak_bytes: int
    static_bytes: int
    saved_bytes: int | None
    split: dict[Category, int]
    by_module: list[tuple[str, Origin, int]]
    host_bytes: int
    timeline: list[int] = field(repr=False)
    lives: list[tuple[int, int, int | None]] = field(repr=False, default_factory=list)

    @property
    def activation_bytes(self) -> int:
        """The part of the peak that is neither parameter, buffer, gradient, optimizer state nor input."""
        return self.split["activations"] + self.split["temporaries"]


class Ledger(TorchDispatchMode):
    """Counts live bytes of tensors on one kind of device while active.

    >>> ledger = Ledger()
    >>> with ledger:
    ...     kept = torch.ones(256) + torch.ones(256)
    >>> ledger.report().peak_bytes
    3072

    Args:
        model: attributes bytes to its modules, and registers its parameters, buffers and gradients.
        device: ``"cpu"`` or ``"cuda"``; storages elsewhere are not counted.
    """

    def __init__(self, model: nn.Module | None = None, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.live = self.host_live = self._host_peak = 0
        self._model = model
        self._blocks: list[_Block] = []
        self._known: dict[int, tuple[weakref.ref[Any], _Block]] = {}
        self._timeline: list[int] = []
        self._backward_starts: list[int] = []
        self._in_backward = False
        self._trace = ModuleTrace(model)
        self._hooks: list[Any] = []
        if model is not None:
            self.register("parameters", model.parameters())
            self.register("buffers", model.buffers())
            self.register("gradients", [p.grad for p in model.parameters() if p.grad is not None])

    def register(self, category: Category, tensors: Iterable[Any]) -> None:
        """Count existing tensors as ``category`` from the start; call before entering."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._note(tensor, tag=category)

    def register_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimizer's existing state."""
        self.register("optimizer", tree_leaves([list(state.values()) for state in optimizer.state.values()]))

    def mark_output(self, tensor: Tensor) -> None:
        """Name a tensor as logits: live, but not counted as saved."""
        entry = self._known.get(id(tensor.untyped_storage()))
        if entry is not None:
            entry[1].output = True

    def __enter__(self) -> Ledger:
        """Start counting; what was registered is static."""
        self._static = self.live
        self._timeline = [self.live]
        if self._model is not None:
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(self._tag_gradient))
        self._trace.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        """Stop counting; the log stays readable."""
        super().__exit__(*exc)
        self._trace.__exit__()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        # Nothing after the region may change what the report says.
        self._known.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; torch's guard against it takes a twentieth of a prediction."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note the storages it made."""
        self._watch_backward()
        out = fake_ops.call(func, args, kwargs or {})
        if func in _BATCH_NORM and isinstance(args[0], FakeTensor):
            out = _mixed_batch_norm(args, out)
        for tensor in fake_ops.tensors_in(out):
            self._note(tensor)
        return out

    def report(self) -> LedgerReport:
        """Classify the log."""
        peak = max(range(len(self._timeline)), key=self._timeline.__getitem__)
        split: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        modules: dict[tuple[str, Origin], int] = defaultdict(int)
        for block in self._blocks:
            if block.alive(peak):
                split[self._category(block)] += block.bytes
                if block.born > 0:
                    modules[block.module, block.origin] += block.bytes
        return LedgerReport(
            peak_bytes=self._timeline[peak],
            static_bytes=self._static,
            saved_bytes=max(map(self._saved_at, self._backward_starts), default=None),
            split=split,
            by_module=sorted(((m, o, b) for (m, o), b in modules.items()), key=lambda row: (-row[2], row[0])),
            host_bytes=self._host_peak,
            timeline=self._timeline,
            lives=[(block.bytes, block.born, block.died) for block in self._blocks],
        )

    def _note(self, tensor: Tensor, tag: Category | None = None) -> None:
        # Asking a fake tensor for its device dispatches an operator.
        kind = (tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device).type
        host = _HOST.get() and kind == "cpu"
        if (kind != self.device and not host) or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        known = self._known.get(key)
        if known is not None:
            self._grow(known[1], size)
            return
        module, origin = self._trace.where() if tag is None else ("", "other")
        self._change(size, host)
        block = _Block(size, len(self._timeline) - 1 if tag is None else 0, module, origin, tag, host=host)
        if not host:
            self._blocks.append(block)
        # torch keeps a storage's Python object as long as the storage itself, so its death is the storage's, and the
        # id cannot be reused before the callback ran.
        self._known[key] = (weakref.ref(storage, lambda _: self._forget(key)), block)

    def _forget(self, key: int) -> None:
        entry = self._known.pop(key, None)
        if entry is not None:
            self._change(-entry[1].bytes, entry[1].host)
            entry[1].died = len(self._timeline) - 1

    def _grow(self, block: _Block, size: int) -> None:
        if size != block.bytes:
            self._change(size - block.bytes, block.host)
            block.bytes = size

    def _change(self, delta: int, host: bool) -> None:
        if host:
            self.host_live += delta
            self._host_peak = max(self._host_peak, self.host_live)
            return
        self.live += delta
        self._timeline.append(self.live)

    def _watch_backward(self) -> None:
        inside = torch._C._current_graph_task_id() != -1
        if inside and not self._in_backward:
            self._backward_starts.append(len(self._timeline) - 1)
        self._in_backward = inside

    def _tag_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            entry = self._known.get(id(parameter.grad.untyped_storage()))
            if entry is not None:
                entry[1].tag = "gradients"

    def _category(self, block: _Block) -> Category:
        if block.tag is not None:
            return block.tag
        if block.origin == "forward":
            after = bisect.bisect_left(self._backward_starts, block.born)
            if after < len(self._backward_starts) and block.alive(self._backward_starts[after]):
                return "activations"
        return "temporaries"

    def _saved_at(self, start: int) -> int:
        return sum(b.bytes for b in self._blocks if b.tag is None and not b.output and b.alive(start))


def _mixed_batch_norm(args: Any, out: Any) -> Any:
    """Give fake batch norm the real one's dtypes.

    With a half-precision input and float32 weights the CPU's ``native_batch_norm`` returns float32 statistics, its fake
    counterpart half-precision ones; the backward then refuses the mixture.
    """
    value, mean, rstd = out
    weight = args[1]
    if weight is not None and mean.dtype != weight.dtype and mean.numel():
        mean, rstd = mean.to(weight.dtype), rstd.to(weight.dtype)
    return value, mean, rstd
