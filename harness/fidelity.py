"""Fidelity: a method's gradient against autograd BPTT of the prepared model.

Same loss, normalisation mode, weights, batch and random numbers; float32 with TF32 off (float64 in the conformance
kit).
A gradient counts as exact when its error is at most ``max(FLOOR, rounding)``, where ``rounding`` is what a
rounding-level perturbation of the weights does to BPTT itself on that net: near-threshold membranes make a spiking
network's gradient jump, and no method can be closer to BPTT than BPTT is to itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from harness.build import Batch, Bench, Trainer, build_method, copy_weights, make_loss
from harness.contracts import Loss, Method, StagedModel, Unsupported, reset_states
from harness.distributed.ranks import ALONE, Ranks
from harness.module_trace import WRAPPER
from harness.record import Fidelity, LayerError
from harness.spikes import SpikeRecorder, flipped

FLOOR = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative L2 error that an exact gradient may show: the assertion 1 of the methods' reference table."""
SILENT_RATE = 1e-3
"""A layer that fires less often than once in a thousand neuron-steps is named as silent (our choice)."""
SEED = 20_211
"""Random numbers (dropout) of the compared steps; any constant does."""

Gradients = dict[str, Tensor]


@dataclass
class Gradient:
    """A gradient with the forward that it belongs to."""

    by_name: Gradients
    loss: float
    spikes: SpikeRecorder


def bptt_gradient(model: nn.Module, batch: Batch, loss: Loss) -> Gradient:
    """Autograd through the whole sequence: the reference. Leaves no gradients behind."""
    x, y = batch
    torch.manual_seed(SEED)
    reset_states(model)
    with SpikeRecorder(model) as spikes:
        value = loss(model(x), y)
    value.backward()
    return Gradient(_take(model), float(value.detach()), spikes)


def method_gradient(method: Method, model: StagedModel, batch: Batch, loss: Loss) -> Gradient:
    """What ``method.step`` accumulates, summed over its updates; the weights stay as they are."""
    x, y = batch
    total: Gradients = {}

    def update() -> None:
        for name, gradient in _take(model).items():
            total[name] = total[name] + gradient if name in total else gradient

    torch.manual_seed(SEED)
    reset_states(model)
    with SpikeRecorder(model) as spikes:
        out = method.step(model, x, y, loss, update)
    return Gradient(total, float(out.loss), spikes)


def measure(bench: Bench, at: Literal["initial", "trained"], trained: Trainer | None = None) -> Fidelity:
    """Fidelity of the cell's method at its initial weights, or at those of ``trained``."""
    if bench.ranks.size > 1 and (name := _dropout(bench.plain())) is not None:
        raise Unsupported(f"{name} draws other masks on every rank than one process does for the whole batch")
    method = build_method(bench.spec)
    model = bench.prepared(method)
    plain = bench.plain()
    if trained is not None:
        copy_weights(trained.model, model)
    copy_weights(model, plain)
    return compare(method, model, plain, bench.batch, make_loss(bench.spec.loss), at, bench)


def compare(
    method: Method,
    model: StagedModel,
    plain: nn.Module,
    batch: Batch,
    loss: Loss,
    at: Literal["initial", "trained"],
    bench: Bench | None = None,
) -> Fidelity:
    """Both gradients on one batch, and BPTT's own sensitivity to rounding.

    Args:
        method: the one under test.
        model: prepared by ``method``.
        plain: the same network with the same weights, prepared and finished: what BPTT runs on.
        batch: ``(x [T, N, ...], y [N])``, in the dtype to compare in.
        loss: the objective.
        at: where in training the weights are from.
        bench: whose ranks share the batch: the mean of their gradients is compared with the whole batch's.
    """
    shared = bench is not None and bench.ranks.size > 1
    whole = bench.whole() if bench is not None and bench.whole is not None and shared else batch
    model.train()
    plain.train()
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        ours = method_gradient(method, model, batch, loss)
        if bench is not None:
            ours = _mean(ours, bench.ranks)
        reference = bptt_gradient(plain, whole, loss)
        plain.load_state_dict(state)
        _perturb(plain)
        rounding = relative_l2(bptt_gradient(plain, whole, loss).by_name, reference.by_name)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        plain.load_state_dict(state)
    common = {name: ours.by_name[name] for name in reference.by_name if name in ours.by_name}
    # A parameter that the method gave no gradient counts as zero.
    ours_all = {name: common.get(name, torch.zeros_like(g)) for name, g in reference.by_name.items()}
    floor = FLOOR.get(batch[0].dtype, FLOOR[torch.float32])
    error = relative_l2(ours_all, reference.by_name)
    flips = flipped(ours.spikes, reference.spikes)
    unlike = "no neuron layer of the same name and size in both models"
    reasons = {} if flips is not None else {"flipped_spikes": "a rank sees its part of the batch" if shared else unlike}
    cosine = _cosine(_flat(ours_all), _flat(reference.by_name))
    if cosine is None:
        reasons["cosine"] = "a gradient is zero"
    return Fidelity(
        at=at,
        reference="autograd BPTT of the prepared model",
        relative_l2=error,
        cosine=cosine,
        max_abs=max((float((ours_all[n] - g).abs().max()) for n, g in reference.by_name.items()), default=0.0),
        flipped_spikes=flips,
        loss_difference=ours.loss - reference.loss,
        rounding=rounding,
        tolerance=max(floor, rounding),
        exact=error <= max(floor, rounding),
        layers=[_layer(name, ours_all[name], g) for name, g in reference.by_name.items()],
        silent_layers=[name for name, rate in reference.spikes.rates().items() if rate < SILENT_RATE],
        reasons=reasons,
    )


def _dropout(model: nn.Module) -> str | None:
    """A module that draws random masks, or None."""
    return next((n for n, m in model.named_modules() if "dropout" in type(m).__name__.lower() and _draws(m)), None)


def _draws(module: nn.Module) -> bool:
    return bool(getattr(module, "p", 1.0))


def _mean(found: Gradient, ranks: Ranks) -> Gradient:
    """The mean of the ranks' gradients and losses; the spikes stay this rank's."""
    holders = {name: nn.Parameter(value) for name, value in found.by_name.items()}
    for holder in holders.values():
        holder.grad = holder.data
    ranks.average(holders.values(), check=True)
    by_name = {name: holder.data for name, holder in holders.items()}
    return Gradient(by_name, ranks.total(found.loss)[0] / ranks.size, found.spikes)


def against_one_process(bench: Bench) -> float:
    """Relative L2 distance of the ranks' mean gradient from the same method's in one process on the whole batch."""
    methods = build_method(bench.spec), build_method(bench.spec)
    loss, whole = make_loss(bench.spec.loss), bench.batch if bench.whole is None else bench.whole()
    ours = _mean(method_gradient(methods[0], bench.prepared(methods[0]), bench.batch, loss), bench.ranks)
    alone = replace(bench, batch=whole, ranks=ALONE)
    return relative_l2(ours.by_name, method_gradient(methods[1], alone.prepared(methods[1]), whole, loss).by_name)


def relative_l2(ours: Gradients, reference: Gradients) -> float:
    """``||ours - reference|| / ||reference||`` over all parameters; the plain norm where the reference is zero."""
    difference, norm = _flat(ours) - _flat(reference), _flat(reference).norm()
    return float(difference.norm() / norm) if norm > 0 else float(difference.norm())


def _take(model: nn.Module) -> Gradients:
    gradients = {name.replace(WRAPPER, ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return gradients


def _perturb(model: nn.Module) -> None:
    """Move every weight by about one unit in its last place."""
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=draw, dtype=torch.float64) * 2 - 1
            parameter.mul_(1 + noise.to(parameter) * torch.finfo(parameter.dtype).eps)


def _flat(gradients: Gradients) -> Tensor:
    return torch.cat([g.flatten().double() for g in gradients.values()]) if gradients else torch.zeros(0)


def _cosine(a: Tensor, b: Tensor) -> float | None:
    norm = a.norm() * b.norm()
    return float(a @ b / norm) if norm > 0 else None


def _layer(name: str, ours: Tensor, reference: Tensor) -> LayerError:
    norm = float(reference.double().norm())
    difference = float((ours.double() - reference.double()).norm())
    return LayerError(
        name=name,
        relative_l2=difference / norm if norm > 0 else None,
        cosine=_cosine(ours.flatten().double(), reference.flatten().double()),
        max_abs=float((ours - reference).abs().max()),
    )
