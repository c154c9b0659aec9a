import json
import math

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import neuron, surrogate

from suites.models.neurons import SURROGATES, NeuronOptions, make_neuron


def spikes(current, **options):
    """Spikes of one neuron under a constant current over ten steps."""
    node = make_neuron(NeuronOptions(**options))
    return node(torch.full((10, 1), current)).flatten().tolist()


def by_hand(current, tau, decay_input, soft, threshold=1.0, rest=0.0):
    v, out = rest, []
    for _ in range(10):
        v = v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current
        out.append(float(v >= threshold))
        v = v - out[-1] * threshold if soft else v * (1 - out[-1]) + rest * out[-1]
    return out


@pytest.mark.parametrize("tau", [4 / 3, 2.0, 10.0])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", ["soft", 0.0])
@pytest.mark.parametrize("current", [0.6, 1.7])
def test_a_lif_neuron_follows_its_equations(tau, decay_input, v_reset, current):
    expected = by_hand(current, tau, decay_input, v_reset == "soft")
    assert spikes(current, tau=tau, decay_input=decay_input, v_reset=v_reset) == expected


def test_reset_voltage_and_threshold_are_used():
    options = {"tau": 2.0, "decay_input": False, "v_reset": -0.5, "v_threshold": 1.3}
    assert spikes(1.0, **options) == by_hand(1.0, 2.0, False, False, threshold=1.3, rest=-0.5)


def test_an_if_neuron_does_not_leak():
    assert spikes(0.3, neuron="if") == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_a_plif_neuron_starts_at_tau_and_learns_it():
    node = make_neuron(NeuronOptions(neuron="plif", tau=3.0, decay_input=False))
    assert isinstance(node, neuron.ParametricLIFNode)
    assert node.decay_input is False
    assert math.isclose(1 / node.w.sigmoid().item(), 3.0, rel_tol=1e-6)
    node(torch.rand(4, 8) + 0.5).sum().backward()
    assert node.w.grad.abs() > 0


@pytest.mark.parametrize(
    ("name", "kind", "alpha"),
    [
        ("atan", surrogate.ATan, 2.0),
        ("sigmoid", surrogate.Sigmoid, 4.0),
        ("piecewise_quadratic", surrogate.PiecewiseQuadratic, 1.0),
    ],
)
def test_a_surrogate_has_its_own_width_unless_one_is_given(name, kind, alpha):
    options = NeuronOptions(surrogate=name)
    assert options.alpha == alpha == kind().alpha
    function = make_neuron(options).surrogate_function
    assert type(function) is kind
    assert function.alpha == alpha
    assert make_neuron(NeuronOptions(surrogate=name, alpha=7.5)).surrogate_function.alpha == 7.5


def test_the_piecewise_quadratic_is_sltts_triangle():
    u = torch.linspace(-2, 2, 41, requires_grad=True)
    SURROGATES["piecewise_quadratic"][0](alpha=1.0)(u).sum().backward()
    assert torch.allclose(u.grad, (1 - u.detach().abs()).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_reset_decides_whether_the_reset_is_in_the_gradient(detach):
    x = torch.full((2, 1), 0.9, requires_grad=True)
    make_neuron(NeuronOptions(neuron="if", detach_reset=detach))(x)[1].sum().backward()
    # v = 0.9, no spike, then 1.8: with the reset in the graph the second spike also depends on the first one.
    assert (x.grad[0] == x.grad[1]).item() is detach


def test_neurons_are_separate_and_multi_step():
    options = NeuronOptions()
    one, other = make_neuron(options), make_neuron(options)
    assert one.step_mode == "m"
    one(torch.ones(3, 2))
    assert isinstance(other.v, float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"v_reset": "hard"}, "must be 'soft'"),
        ({"v_reset": True}, "must be 'soft'"),
        ({"v_reset": math.nan}, "must be 'soft'"),
        ({"v_reset": None}, "must be 'soft'"),
        ({"v_reset": 1.0}, "below v_threshold"),
        ({"tau": 1.0}, "greater than 1"),
        ({"tau": math.inf}, "finite"),
        ({"v_threshold": 0}, "greater than 0"),
        ({"alpha": 0}, "greater than 0"),
        ({"surrogate": "triangle"}, "'atan', 'sigmoid' or 'piecewise_quadratic'"),
        ({"neuron": "izhikevich"}, "'lif', 'if' or 'plif'"),
        ({"neuron": "if", "tau": 3.0}, "leave tau out"),
        ({"neuron": "if", "decay_input": False}, "leave decay_input out"),
        ({"taus": 2.0}, "Extra inputs"),
    ],
)
def test_wrong_options_give_one_clear_error(given, message):
    with pytest.raises(ValidationError, match=message) as caught:
        NeuronOptions(**given)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("given", [{}, {"v_reset": "soft"}, {"neuron": "if"}, {"surrogate": "sigmoid", "v_reset": -1}])
def test_complete_options_can_be_read_back(given):
    complete = NeuronOptions.model_validate_json(json.dumps(given), strict=True)
    again = NeuronOptions.model_validate_json(complete.model_dump_json(), strict=True)
    assert again == complete
    assert None not in complete.model_dump().values()
