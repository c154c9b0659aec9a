"""Models as users write them: none of them knows of stages."""

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


def lif():
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)


def sequential():
    net = nn.Sequential(
        layer.Conv2d(1, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), lif(), layer.MaxPool2d(2, 2),
        nn.Sequential(layer.Conv2d(8, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), lif(), layer.AvgPool2d(2, 2)),
        layer.Flatten(), layer.Linear(32, 16), lif(), layer.Linear(16, 10),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1, self.sn1 = (
            layer.Conv2d(channels, channels, 3, padding=1),
            layer.BatchNorm2d(channels),
            lif(),
        )
        self.conv2, self.bn2, self.sn2 = (
            layer.Conv2d(channels, channels, 3, padding=1),
            layer.BatchNorm2d(channels),
            lif(),
        )

    def forward(self, x):
        return self.sn2(self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))) + x


class Residual(nn.Module):
    """Blocks in a loop, functions between modules; a mean over time at the end where asked for."""

    def __init__(self, mean=False):
        super().__init__()
        self.mean = mean
        self.stem = nn.Sequential(layer.Conv2d(1, 8, 3, padding=1), layer.BatchNorm2d(8), lif())
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.pool, self.fc = layer.AdaptiveAvgPool2d(1), layer.Linear(8, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.fc(self.pool(x).flatten(2))
        return x.mean(0) if self.mean else x


def residual():
    return Residual()


def residual_mean():
    return Residual(mean=True)


class OneStep(nn.Module):
    """Plain layers, single-step neurons and a flatten that counts dimensions: only ``[N, ...]`` will do."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.fc = nn.Conv2d(1, 4, 3, padding=1), lif(), nn.Linear(256, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.lif(self.conv(x)), 1))


def one_step():
    return OneStep()


def single_step_layers():
    """Single-step mode, with SpikingJelly's layers."""
    return nn.Sequential(layer.Conv2d(1, 4, 3, padding=1), lif(), layer.Flatten(), layer.Linear(256, 10))


def plain_layers():
    """Single-step mode, with torch's layers."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), lif(), nn.Flatten(), nn.Linear(256, 10))


def no_neurons():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


class ByValue(nn.Module):
    """Its forward depends on values, so neither fake tensors nor torch.fx can follow it."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.fc = layer.Conv2d(1, 4, 3, padding=1), lif(), layer.Linear(256, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        spikes = self.lif(self.conv(x))
        if spikes.sum() < 0:
            spikes = spikes * 2
        return self.fc(spikes.flatten(2))


def by_value():
    return ByValue()


class Shared(nn.Module):
    """One neuron in two places: cutting between them would be wrong only for its state, so the outputs agree."""

    def __init__(self):
        super().__init__()
        self.flat, self.one, self.two, self.lif = layer.Flatten(), layer.Linear(64, 8), layer.Linear(8, 10), lif()
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.lif(self.two(self.lif(self.one(self.flat(x)))))


def not_a_model():
    return 3
