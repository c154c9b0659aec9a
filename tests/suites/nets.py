"""What several tests of models need."""

import torch
from spikingjelly.activation_based import functional

from harness.contracts import reset_states


def logits(model, x):
    """Multi-step logits from clean states."""
    reset_states(model)
    return model(x)


def single_steps(model, x):
    """Logits of a single-step loop over ``x [T, N, ...]``, stacked; the model is in multi-step mode again after it."""
    reset_states(model)
    functional.set_step_mode(model, "s")
    out = torch.stack([model(step) for step in x])
    functional.set_step_mode(model, "m")
    return out


def copy_in_order(source, target):
    """Load ``source``'s state into ``target``, which nests the same modules otherwise."""
    values = list(source.state_dict().values())
    keys = target.state_dict()
    assert [v.shape for v in values] == [v.shape for v in keys.values()]
    target.load_state_dict(dict(zip(keys, values, strict=True)))
