"""Fidelity: a method's gradient against autograd BPTT of the prepared model.

Same loss, normalisation mode, weights, batch and random numbers; float32 with TF32 off (float64 in the conformance
kit).
A gradient counts as exact when its error is at most ``max(FLOOR, rounding)``, where ``rounding`` is what a
rounding-level perturbation of the weights does to BPTT itself on that net: near-threshold membranes make a spiking
network's gradient jump, and no method can be closer to BPTT than BPTT is to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.build import Batch, Bench, Trainer, build_method, copy_weights, make_loss
from harness.contracts import Loss, Method, StagedModel, reset_states
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
    method = build_method(bench.spec)
    model = bench.prepared(method)
    plain = bench.plain()
    if trained is not None:
        copy_weights(trained.model, model)
    copy_weights(model, plain)
    return compare(method, model, plain, bench.batch, make_loss(bench.spec.loss), at)


def compare(
    method: Method, model: StagedModel, plain: nn.Module, batch: Batch, loss: Loss, at: Literal["initial", "trained"]
) -> Fidelity:
    """Both gradients on one batch, and BPTT's own sensitivity to rounding.

    Args:
        method: the one under test.
        model: prepared by ``method``.
        plain: the same network with the same weights, prepared and finished: what BPTT runs on.
        batch: ``(x [T, N, ...], y [N])``, in the dtype to compare in.
        loss: the objective.
        at: where in training the weights are from.
    """
    model.train()
    plain.train()
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        ours = method_gradient(method, model, batch, loss)
        reference = bptt_gradient(plain, batch, loss)
        plain.load_state_dict(state)
        _perturb(plain)
        rounding = relative_l2(bptt_gradient(plain, batch, loss).by_name, reference.by_name)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        plain.load_state_dict(state)
    shared = {name: ours.by_name[name] for name in reference.by_name if name in ours.by_name}
    # A parameter that the method gave no gradient counts as zero.
    ours_all = {name: shared.get(name, torch.zeros_like(g)) for name, g in reference.by_name.items()}
    floor = FLOOR.get(batch[0].dtype, FLOOR[torch.float32])
    error = relative_l2(ours_all, reference.by_name)
    flips = flipped(ours.spikes, reference.spikes)
    reasons = (
        {} if flips is not None else {"flipped_spikes": "no neuron layer of the same name and size in both models"}
    )
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
