"""Which later layers an auxiliary network copies, under a budget of bytes.

Every rule offers, for each depth, at most one selection that does not depend on the budget; the deepest one whose
measured activation (subnetwork + auxiliary network) fits is taken. So a larger budget never gives a shallower one.

* ``classifier_only``: none.
* ``uniform_max_depth``: layers ``round(l + rest/d * i)``, ``i = 1..d``, after the subnetwork's last layer ``l``; the
  rule of AugLocal (Ma et al., ICLR 2024).
* ``max_subset``: of all selections of ``d`` layers the one that stores least. What a copy stores depends on the strides
  placed before it, so this is a shortest path over (layer, shape of its output).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from harness.contracts import StagedModel
from methods._architecture import Shape, fresh_copy
from methods._local import Part, layers_of, read_out, stages_of
from methods._measure import Setting, activation_bytes, layer_bytes

AuxRule = Literal["classifier_only", "uniform_max_depth", "max_subset"]
Selection = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The auxiliary network of one subnetwork.

    Args:
        layers: numbers of the layers that it copies, ascending.
        inputs: sample shape before each copy, and of what is read out.
        activation_bytes: measured for subnetwork and auxiliary network; None without a budget.
    """

    layers: Selection
    inputs: tuple[Shape, ...]
    activation_bytes: int | None = None


def uniform(last: int, rest: int, depth: int) -> Selection:
    """``depth`` layers spread over the ``rest`` layers after layer ``last``.

    >>> uniform(0, 15, 5), uniform(3, 12, 4)
    ((3, 6, 9, 12, 15), (6, 9, 12, 15))
    """
    return tuple(round(last + rest / depth * i) for i in range(1, depth + 1))


class Network:
    """The layers of a model, to copy from.

    Args:
        model: real or fake, freshly initialised, its states reset.
        shapes: sample shape before every layer, after the last one, and of the logits.
        step_mode: of its modules.
    """

    def __init__(self, model: StagedModel, shapes: Sequence[Shape], step_mode: str) -> None:
        self.model, self.shapes, self.step_mode = model, list(shapes), step_mode
        self.ranges = layers_of(model)
        self.layers = [stages_of(model, self.ranges, range(n, n + 1)) for n in range(len(self.ranges))]

    def follow(self, number: int, given: Shape) -> nn.Module | None:
        """A fresh copy of a layer for an input of a shape; None where it cannot follow."""
        return fresh_copy(self.layers[number], given, self.shapes[number], self.shapes[number + 1], self.step_mode)

    def auxiliary(self, choice: Choice) -> nn.Sequential:
        """The copies and, after them, global average pooling and a linear read-out.

        Raises:
            ValueError: a layer cannot follow: the choice is another network's.
        """
        copies = []
        for number, given in zip(choice.layers, choice.inputs, strict=False):
            new = self.follow(number, given)
            if new is None:
                raise ValueError(f"layer {number} cannot follow in layers {choice.layers} of this network")
            copies.append(new)
        return nn.Sequential(*copies, read_out(self.model, choice.inputs[-1], self.shapes[-1][0], self.step_mode))


class Costs:
    """What copies of the layers of a fake network store, each measured once.

    Args:
        network: fake.
        setting: what to measure under.
    """

    def __init__(self, network: Network, setting: Setting) -> None:
        self.network, self.setting = network, setting
        self._kinds = [repr(layer) for layer in network.layers]
        self._known: dict[tuple[str, Shape, Shape], tuple[int, Shape] | None] = {}

    def after(self, number: int, given: Shape) -> tuple[int, Shape] | None:
        """Bytes that a copy of a layer adds at least, and its output's shape; None where it cannot follow."""
        key = (self._kinds[number], given, self.network.shapes[number])
        if key not in self._known:
            copy = self.network.follow(number, given)
            self._known[key] = None if copy is None else layer_bytes(copy, given, self.setting)
        return self._known[key]

    def along(self, layers: Selection, given: Shape) -> tuple[int, tuple[Shape, ...]] | None:
        """The same for layers one after the other, with all shapes on the way."""
        total, inputs = 0, [given]
        for number in layers:
            step = self.after(number, inputs[-1])
            if step is None:
                return None
            total += step[0]
            inputs.append(step[1])
        return total, tuple(inputs)

    def cheapest(self, first: int, given: Shape, limit: float) -> list[Selection]:
        """For one layer from ``first`` on, two layers, ...: those that store least, while that is at most ``limit``."""
        found: list[Selection] = []
        front: dict[tuple[int, Shape], tuple[int, Selection]] = {(first - 1, given): (0, ())}
        while front:
            longer: dict[tuple[int, Shape], tuple[int, Selection]] = {}
            for (last, shape), (total, layers) in front.items():
                for number in range(last + 1, len(self.network.layers)):
                    step = self.after(number, shape)
                    if step is not None and total + step[0] <= limit:
                        label = (total + step[0], (*layers, number))
                        place = (number, step[1])
                        longer[place] = min(label, longer.get(place, label))
            found += [min(longer.values())[1]] if longer else []
            front = longer
        return found


def unlimited(network: Network, runs: Sequence[range], rule: AuxRule) -> list[Choice]:
    """The auxiliary networks of all subnetworks but the last without a budget: all later layers, or none."""
    shapes, count = network.shapes, len(network.layers)
    ends = [range(run[-1] + 1, run[-1] + 1 if rule == "classifier_only" else count) for run in runs[:-1]]
    return [Choice(tuple(later), tuple(shapes[later.start : later.stop + 1])) for later in ends]


def select(network: Network, runs: Sequence[range], rule: AuxRule, budget: int, setting: Setting) -> list[Choice]:
    """The auxiliary networks of all subnetworks but the last.

    Args:
        network: fake; call this inside its fake mode.
        runs: layers of each subnetwork.
        rule: which selections are offered.
        budget: bytes of activation for subnetwork and auxiliary network.
        setting: what to measure under.
    """
    costs = Costs(network, setting)
    return [_choose(costs, run, rule, budget) for run in runs[:-1]]


def _choose(costs: Costs, run: range, rule: AuxRule, budget: int) -> Choice:
    net = costs.network
    given = net.shapes[run[-1] + 1]
    own = costs.along(tuple(run), net.shapes[run[0]])
    assert own is not None
    spare = budget - own[0]
    for layers in _offers(costs, run[-1], rule, spare):
        stored, inputs = costs.along(layers, given) or (None, ())
        # Not worth measuring where already the sum of what the layers store is too much.
        if stored is not None and stored <= spare:
            measured = _measure(costs, run, Choice(layers, inputs))
            if measured <= budget:
                return Choice(layers, inputs, measured)
    return Choice((), (given,), _measure(costs, run, Choice((), (given,))))


def _offers(costs: Costs, last: int, rule: AuxRule, spare: int) -> Iterable[Selection]:
    """Selections after layer ``last``, deepest first."""
    rest = len(costs.network.layers) - 1 - last
    if rule == "uniform_max_depth":
        return [uniform(last, rest, depth) for depth in range(rest, 0, -1)]
    if rule == "max_subset":
        return reversed(costs.cheapest(last + 1, costs.network.shapes[last + 1], spare))
    return []


def _measure(costs: Costs, run: range, choice: Choice) -> int:
    net = costs.network
    part = Part(stages_of(net.model, net.ranges, run), net.auxiliary(choice), last=False)
    return activation_bytes(part, net.shapes[run[0]], costs.setting)
