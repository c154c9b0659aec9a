"""Options of spiking neurons, and the SpikingJelly neurons made from them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from spikingjelly.activation_based import base, neuron, surrogate

from harness.contracts import Options

SurrogateName = Literal["atan", "sigmoid", "piecewise_quadratic"]
NeuronName = Literal["lif", "if", "plif"]

# Width parameter of each surrogate: SpikingJelly's own defaults (surrogate.py). The piecewise quadratic at alpha = 1 is
# max(0, 1 - |u - V_th|), the triangle of SLTT (Meng et al., ICCV 2023).
SURROGATES: dict[str, tuple[type, float]] = {
    "atan": (surrogate.ATan, 2.0),
    "sigmoid": (surrogate.Sigmoid, 4.0),
    "piecewise_quadratic": (surrogate.PiecewiseQuadratic, 1.0),
}


def _fill_alpha(value: Any, info: ValidationInfo) -> Any:
    """The surrogate's own width where none is given, so that a cell's identity names the number that was used.

    On the field, not before the model: behind a validator there, pydantic no longer takes a JSON array for a tuple.
    """
    # An unknown surrogate is reported by its own field.
    return SURROGATES[info.data.get("surrogate", "atan")][1] if value is None else value


def _reset_voltage(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value == "soft" or number:
        return value
    raise ValueError("must be 'soft' (subtract the threshold) or a finite number (reset to it)")


Reset = Annotated[float | Literal["soft"], BeforeValidator(_reset_voltage)]
"""Voltage after a spike, or ``"soft"``."""


class NeuronOptions(Options):
    """Neuron parameters; the defaults are SpikingJelly's (``neuron.LIFNode``) unless said otherwise.

    Attributes:
        neuron: ``lif``, ``if`` (no leak) or ``plif`` (LIF with a learnt time constant per layer).
        tau: membrane time constant in steps; the initial one for ``plif``.
        v_threshold: firing threshold.
        v_reset: voltage after a spike, or ``"soft"``: subtract the threshold.
        detach_reset: keep the reset out of the gradient. SpikingJelly defaults to False, its published training scripts
            all use True (after Zenke and Vogels, 2021).
        decay_input: whether the input is scaled by ``1 / tau``.
        surrogate: derivative used for the spike in the backward pass; ``atan`` is what SpikingJelly's scripts use.
        alpha: the surrogate's width parameter; left out, it is the surrogate's default in :data:`SURROGATES`.
    """

    neuron: NeuronName = "lif"
    tau: float = Field(2.0, gt=1.0, allow_inf_nan=False)
    v_threshold: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    v_reset: Reset = 0.0
    detach_reset: bool = True
    decay_input: bool = True
    surrogate: SurrogateName = "atan"
    alpha: Annotated[float, BeforeValidator(_fill_alpha)] = Field(
        None, gt=0.0, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="after")
    def _consistent(self) -> NeuronOptions:
        if self.v_reset != "soft" and self.v_reset >= self.v_threshold:
            raise ValueError(f"v_reset is {self.v_reset}, but must be below v_threshold = {self.v_threshold}")
        for name in ("tau", "decay_input") if self.neuron == "if" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"the neuron 'if' has no leak: leave {name} out")
        return self


def make_neuron(options: NeuronOptions) -> base.MemoryModule:
    """A fresh neuron layer in multi-step mode, ``[T, N, ...] -> [T, N, ...]``, binary output."""
    kind, _ = SURROGATES[options.surrogate]
    common: dict[str, Any] = {
        "v_threshold": options.v_threshold,
        "v_reset": None if options.v_reset == "soft" else float(options.v_reset),
        "surrogate_function": kind(alpha=options.alpha),
        "detach_reset": options.detach_reset,
        "step_mode": "m",
    }
    if options.neuron == "if":
        return neuron.IFNode(**common)
    if options.neuron == "plif":
        return neuron.ParametricLIFNode(init_tau=options.tau, decay_input=options.decay_input, **common)
    return neuron.LIFNode(tau=options.tau, decay_input=options.decay_input, **common)
