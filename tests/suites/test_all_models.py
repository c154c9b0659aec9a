"""Every registered model: its size against the published one, its real size under fake tensors, a step by BPTT and SLTT."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import predict, registry
from harness.build import Trainer, build_method
from harness.spec import CellSpec, Ref

IMAGENET, CIFAR, DVS = ((3, 224, 224), 1000), ((3, 32, 32), 10), ((2, 48, 48), 10)

# Millions of parameters, with where the figure comes from.
PUBLISHED = [
    ("sew-resnet", {}, IMAGENET, 21.79, "SEW-ResNet-34: Fang et al., NeurIPS 2021, table of ImageNet results"),
    ("spikformer", {}, IMAGENET, 29.68, "Spikformer-8-512: Zhou et al., ICLR 2023, table 1"),
    ("spikformer", {"width": 384, "heads": 12}, IMAGENET, 16.81, "Spikformer-8-384: the same"),
    (
        "spikformer",
        {"depth": 4, "width": 384, "heads": 12, "patch": 4},
        CIFAR,
        9.32,
        "Spikformer-4-384: the same, table 3",
    ),
    ("qkformer", {}, IMAGENET, 29.08, "HST-10-512: README of the published code"),
    ("qkformer", {"width": 384, "heads": [6, 6, 6]}, IMAGENET, 16.47, "HST-10-384: the same"),
    ("qkformer", {"width": 768, "heads": [12, 12, 12]}, IMAGENET, 64.96, "HST-10-768: the same"),
    ("rev-resnet", {"depth": 37}, ((3, 32, 32), 100), 23.59, "RevSResNet37: README of the published code"),
]

# Counted from the published code's layers: (weights and biases of convolutions, normalisation, read-out).
COUNTED = [
    ("vgg", {}, DVS, 9_271_498, "SpikingJelly 2.0, examples/memopt/models.py, CIFAR10DVSVGG"),
    ("vgg", {"tebn": 10}, DVS, 9_271_498 + 8 * 10, "the same, and ten factors in each of eight stages"),
    ("scnn", {}, ((3, 32), 10), 514_186, "src/scifar/models.py of the checkpointing paper: 6 Conv1d, Linear, Linear"),
    ("preact-resnet", {}, CIFAR, 11_176_906, "models/spiking_resnet.py of SLTT, spiking_resnet18"),
    ("nf-resnet", {}, IMAGENET, 21_797_688, "models/spiking_resnet_imagenet.py of SLTT, spiking_nfresnet34"),
    ("vgg-ottt", {}, CIFAR, 9_228_362, "models/spiking_vgg.py of OTTT, online_spiking_vgg11_ws"),
    ("vgg-sltt", {}, DVS, 9_476_298, "models/spiking_vgg_bn.py of SLTT, spiking_vgg11_bn"),
    ("spiking-resnet", {}, IMAGENET, 11_689_512, "ResNet-18, torchvision"),
]

# Options and shape of a tiny net of each model, and what SLTT needs of it.
TINY = {
    "convnet": ({"channels": [4]}, (2, 8, 8), {"norm": "per_step"}),
    "mlp": ({"hidden": [6]}, (5,), {"norm": "per_step"}),
    "nf-resnet": ({"depth": 18, "width": 4, "zero_init": False}, (3, 32, 32), {}),
    "node": ({}, (6,), {}),
    "preact-resnet": ({"width": 4}, (3, 16, 16), {"norm": "per_step"}),
    "qkformer": ({"depths": [1, 1, 1], "width": 16, "heads": [1, 1, 2]}, (3, 16, 16), {"norm": "per_step"}),
    "rev-resnet": ({"blocks": [1], "widths": [4]}, (3, 8, 8), {"norm": "per_step"}),
    "scnn": ({"channels": 4, "hidden": 5}, (3, 8), {"norm": "per_step"}),
    "sew-resnet": ({"depth": 18}, (3, 32, 32), {"norm": "per_step"}),
    "spikformer": ({"depth": 1, "width": 16, "heads": 2, "patch": 4}, (3, 16, 16), {"norm": "per_step"}),
    "spiking-resnet": ({"depth": 18}, (3, 32, 32), {"norm": "per_step"}),
    "spiking-vgg": ({"depth": 11}, (3, 32, 32), {"norm": "per_step"}),
    "vgg": ({"cfg": [4, "A", 6]}, (2, 8, 8), {"norm": "per_step"}),
    "vgg-ottt": ({"cfg": [4, "A", 6]}, (3, 8, 8), {}),
    "vgg-sltt": ({"cfg": [4, "A", 6]}, (2, 8, 8), {}),
}
OURS = sorted(name for name, entry in registry.entries("models").items() if entry.target.startswith("suites."))


def build(name, options, sample, classes):
    torch.manual_seed(0)
    return registry.create("models", registry.complete("models", name, options, "test")).build(sample, classes)


def parameters(name, options, shape):
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, options, *shape).parameters())


@pytest.mark.parametrize(("name", "options", "shape", "millions", "source"), PUBLISHED)
def test_a_model_has_the_published_size(name, options, shape, millions, source):
    # Two decimals are published; SpikingJelly's Spikformer leaves out biases before normalisation (0.08 %).
    assert parameters(name, options, shape) / 1e6 == pytest.approx(millions, rel=0.004), source


@pytest.mark.parametrize(("name", "options", "shape", "count", "source"), COUNTED)
def test_a_model_has_the_size_of_the_published_code(name, options, shape, count, source):
    assert parameters(name, options, shape) == count, source


def test_every_model_has_a_tiny_net():
    assert sorted(TINY) == OURS


def cell(name, method, options, sample):
    return CellSpec(
        method=registry.complete("methods", method, {}, "test"),
        baseline="bptt",
        model=registry.complete("models", name, options, "test"),
        data=Ref(name="shape", options={}),
        T=3,
        batch=4,
        profile="test",
        phases=("memory",),
    )


# spiking-vgg has hidden layers of 4,096 neurons whatever its depth: 129 million weights.
STEPS = [
    pytest.param(name, method, marks=[pytest.mark.slow] if name == "spiking-vgg" else [])
    for name in sorted(TINY)
    for method in ("bptt", "sltt", "checkpoint-compress")
]


@pytest.mark.parametrize(("name", "method"), STEPS)
def test_a_step_gives_every_weight_a_gradient(name, method):
    options, sample, online = TINY[name]
    options = options | (online if method == "sltt" else {})
    spec = cell(name, method, options, sample)
    chosen = build_method(spec)
    model = build(name, options, sample, 5)
    trainer = Trainer(spec, chosen, model)
    assert chosen.supports(model, trainer.loss) is None
    x = 3 * torch.rand(3, 4, *sample, generator=torch.Generator().manual_seed(1))
    trainer.model = chosen.prepare(model.train(), x, trainer.loss)
    seen = {}
    trainer.update = lambda: seen.update({n: p.grad for n, p in model.named_parameters()})
    out = trainer.step(x, torch.tensor([0, 1, 2, 3]))
    assert out.logits.shape == (4, 5)
    assert torch.isfinite(out.loss)
    assert seen
    assert not [n for n, gradient in seen.items() if gradient is None or not torch.isfinite(gradient).all()]


REAL = [
    ("spikformer", {}, IMAGENET), ("qkformer", {}, IMAGENET), ("sew-resnet", {}, IMAGENET), ("nf-resnet", {}, IMAGENET),
    ("spiking-resnet", {"depth": 34}, IMAGENET), ("preact-resnet", {}, CIFAR), ("vgg-ottt", {}, CIFAR),
    ("vgg-sltt", {}, DVS), ("vgg", {"tebn": 4}, DVS), ("scnn", {}, ((3, 32), 10)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "shape"), REAL, ids=lambda v: v if isinstance(v, str) else "")
def test_a_model_runs_at_its_real_size_under_fake_tensors(name, options, shape):
    sample, classes = shape
    model = build(name, options, sample, classes)  # for real: initialisers look at values
    with FakeTensorMode() as mode:
        fake = predict.convert(model, mode)
        logits = fake(torch.empty(4, 32, *sample))
        assert logits.shape == (4, 32, classes)
        logits.sum().backward()
        assert all(p.grad is not None for p in fake.parameters())


def test_the_page_of_models_names_every_model():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    rows = [line.split("`")[1] for line in page.read_text().splitlines() if line.startswith("| `")]
    assert sorted(rows) == OURS
