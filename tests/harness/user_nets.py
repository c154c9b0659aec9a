"""Models as users write them, whose input or state is not SpikingJelly's way: loops of their own, states of their own."""

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from tests.harness.plan_nets import lif

T = 4


class Tutorial(nn.Module):
    """SpikingJelly's tutorial: one image in, repeated inside, the firing rate out."""

    def __init__(self, steps=T):
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            layer.Conv2d(1, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), lif(), layer.MaxPool2d(2, 2),
            layer.Flatten(), layer.Linear(64, 10, bias=False), lif(),
        )  # fmt: skip
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.net(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)).mean(0)


class ImageLoop(nn.Module):
    """One image in, a loop over time inside, in single-step mode."""

    def __init__(self, steps=T):
        super().__init__()
        self.steps = steps
        self.conv, self.lif, self.fc = nn.Conv2d(1, 4, 3, padding=1), lif(), nn.Linear(256, 10)

    def forward(self, x):
        functional.reset_net(self)
        x = self.conv(x)
        return sum(self.fc(self.lif(x).flatten(1)) for _ in range(self.steps)) / self.steps


class Loop(nn.Module):
    """A sequence in, a loop over time inside, in single-step mode; its layers would take more dimensions, too."""

    def __init__(self):
        super().__init__()
        self.one, self.lif, self.two = layer.Linear(8, 16), lif(), layer.Linear(16, 10)

    def forward(self, x):
        return torch.stack([self.two(self.lif(self.one(step))) for step in x])


class Cell(nn.Module):
    """A neuron that keeps its membrane in an attribute; SpikingJelly's ``reset_net`` calls its ``reset``."""

    def __init__(self):
        super().__init__()
        self.spike, self.membrane = surrogate.ATan(), None

    def reset(self):
        self.membrane = None

    def forward(self, x):
        before = torch.zeros_like(x) if self.membrane is None else self.membrane
        charged = before * 0.5 + x
        spikes = self.spike(charged - 0.5)
        self.membrane = charged * (1 - spikes.detach())
        return spikes


class BufferCell(Cell):
    """With the membrane in a buffer."""

    def __init__(self):
        super().__init__()
        del self.membrane
        self.register_buffer("membrane", torch.zeros(1))

    def reset(self):
        self.membrane = torch.zeros(1)


class Handmade(nn.Module):
    """A loop over cells of one's own."""

    def __init__(self, cell):
        super().__init__()
        self.one, self.cell, self.two = nn.Linear(8, 16), cell, nn.Linear(16, 10)

    def forward(self, x):
        return torch.stack([self.two(self.cell(self.one(step))) for step in x])


class HandmadeStep(Handmade):
    """One step of it: the loop is the user's training loop's."""

    def forward(self, x):
        return self.two(self.cell(self.one(x).unsqueeze(1)).flatten(1))


class BatchFirst(nn.Module):
    """``[N, T, ...]`` in."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(layer.Linear(8, 16), lif(), layer.Linear(16, 10))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.net(x.transpose(0, 1)).mean(0)


class Monitored(nn.Module):
    """Keeps a rate for its user's loss, with its graph; no state."""

    def __init__(self):
        super().__init__()
        self.one, self.lif, self.two = layer.Linear(8, 16), lif(), layer.Linear(16, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        spikes = self.lif(self.one(x))
        self.rate, self.spikes = spikes.mean(), [spikes]
        return self.two(spikes)


class Twice(nn.Module):
    """One neuron in two places."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.lif, self.out = layer.Linear(8, 8), layer.Linear(8, 8), lif(), layer.Linear(8, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.out(self.lif(self.two(self.lif(self.one(x)))))


class Charged(neuron.SimpleBaseNode):
    """A neuron of one's own, by SpikingJelly's base class for that."""

    def __init__(self):
        super().__init__(surrogate_function=surrogate.ATan(), step_mode="m")
        self.decay = nn.Parameter(torch.tensor(0.5))

    def neuronal_charge(self, x):
        self.v = self.v * self.decay.sigmoid() + x


def own_neurons():
    net = nn.Sequential(layer.Linear(8, 16), Charged(), layer.Linear(16, 16), neuron.PSN(T=T), layer.Linear(16, 10))
    functional.set_step_mode(net, "m")
    return net


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.draw, self.fc = torch.Generator().manual_seed(0), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(x + torch.rand(x.shape, generator=self.draw))


class Spectral(nn.Module):
    """Weights whose norm is found by a power iteration, a step with every forward."""

    def __init__(self):
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm(layer.Linear(8, 16))
        self.net = nn.Sequential(normed, lif(), layer.Linear(16, 10))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.net(x)
