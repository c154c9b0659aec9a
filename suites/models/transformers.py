"""SpikingJelly's spiking transformers, cut into stages.

The modules are SpikingJelly's, in the order of its forward pass, with the weights that it initialised. Only the nesting
differs: a block is two stages, attention and MLP, each with its residual sum, and containers that flatten time and
batch are taken apart into layers that do so one by one, which computes the same numbers and lets the layers work in
either step mode. SpikingJelly's model package imports torchvision, so it is imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import Join, image_shape
from suites.models.neurons import NeuronOptions, SurrogateName, make_neuron
from suites.models.norm import NormOptions, make_norm
from suites.torchvision_shim import ensure_torchvision

TransformerNorm = Literal["over_time", "per_step"]
Heads = tuple[PositiveInt, PositiveInt, PositiveInt]


class TransformerOptions(NeuronOptions, NormOptions):
    """Options that both transformers take; the defaults are those of SpikingJelly and of the authors' code.

    Attributes:
        attention_threshold: firing threshold of the neuron that follows the product of queries, keys and values.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the block's.
    """

    norm: TransformerNorm = "over_time"
    surrogate: SurrogateName = "sigmoid"
    attention_threshold: float = Field(0.5, gt=0.0, allow_inf_nan=False)
    mlp_ratio: float = Field(4.0, gt=0.0, allow_inf_nan=False)


class SpikformerOptions(TransformerOptions):
    """Options of :class:`Spikformer`; the default is Spikformer-8-512.

    ``depth = 4, width = 384, heads = 12, patch = 4`` is the network for CIFAR (SpikingJelly's ``spikformer_cifar10``).

    Attributes:
        depth: transformer blocks.
        width: channels of the blocks.
        heads: attention heads.
        patch: 16: all four stages of the stem halve the image; 4: the last two do.
        pooling: where a stem stage pools. SpikingJelly's model pools ``before_neuron``; the authors' own code, and that
            of the checkpointing paper (ICLR 2026) with it, ``after_neuron``: its neurons see four times the positions.
    """

    depth: PositiveInt = 8
    width: PositiveInt = 512
    heads: PositiveInt = 8
    patch: Literal[4, 16] = 16
    pooling: Literal["before_neuron", "after_neuron"] = "before_neuron"

    @model_validator(mode="after")
    def _divisible(self) -> SpikformerOptions:
        _check_heads(self.width, self.heads)
        if self.width % 8:
            raise ValueError(
                f"width is {self.width}, but must be a multiple of 8: the stem begins with an eighth of it"
            )
        return self


class QKFormerOptions(TransformerOptions):
    """Options of :class:`QKFormer`; the default is HST-10-512.

    ``width = 384, heads = [6, 6, 6]`` is HST-10-384, ``width = 768, heads = [12, 12, 12]`` is HST-10-768.

    Attributes:
        depths: transformer blocks at each of the three resolutions; Q-K attention in the first two, spiking
            self-attention in the last.
        width: channels at the last resolution; half and a quarter of it at the others.
        heads: attention heads at each resolution.
        attention: whether Q-K attention gates tokens or channels.
    """

    depths: Annotated[Heads, Field()] = (1, 2, 7)
    width: PositiveInt = 512
    heads: Heads = (8, 8, 8)
    attention: Literal["token", "channel"] = "token"

    @model_validator(mode="after")
    def _divisible(self) -> QKFormerOptions:
        if self.width % 8:
            raise ValueError(
                f"width is {self.width}, but must be a multiple of 8: the stem begins with an eighth of it"
            )
        for part, heads in zip((4, 2, 1), self.heads, strict=True):
            _check_heads(self.width // part, heads)
        return self


class Tokens(layer.StepModeContainer):
    """Takes an image's positions as one dimension: ``[T, N, C, H, W]`` to ``[T, N, C, H * W]`` and back.

    SpikingJelly's attention takes sequences only. In single-step mode it is given sequences of one step; its neurons
    carry their membranes from one to the next.

    Args:
        inner: ``[T, N, C, L] -> [T, N, C, L]``, in multi-step mode; it stays there.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(True, "m", inner)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        sequence = x if self.step_mode == "m" else x.unsqueeze(0)
        out: Tensor = nn.Sequential.forward(self, sequence.flatten(3))
        return out.reshape(x.shape)


class TokenMean(nn.Module):
    """Mean over the positions of an image, ``[..., C, H, W] -> [..., C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """In either step mode."""
        return x.flatten(-2).mean(-1)


class Spikformer(ModelSource):
    """Stem layers, and the attention and the MLP of every block, are stages; mean over positions and linear the head."""

    name = "spikformer"
    summary = "SpikingJelly's Spikformer (spiking self-attention); default Spikformer-8-512"
    source = "SpikingJelly 2.0, activation_based/model/spikformer.py; Zhou et al., ICLR 2023"
    options: ClassVar[type[SpikformerOptions]] = SpikformerOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`."""
        opt: SpikformerOptions = self.opt
        channels, height, width = image_shape(sample, self.name, pools=4 if opt.patch == 16 else 2)
        ensure_torchvision()
        from spikingjelly.activation_based.model import spikformer

        sizes = {"embed_dims": opt.width, "num_heads": opt.heads, "depths": opt.depth, "patch_size": opt.patch}
        net = spikformer.Spikformer(
            in_channels=channels, img_size_h=height, img_size_w=width, num_classes=classes, mlp_ratio=opt.mlp_ratio,
            spiking_neuron=partial(_neuron, opt), **sizes,
        )  # fmt: skip
        _take_apart(net, opt)
        stem = net.patch_embed
        stages: list[nn.Module] = [self._stem_stage(part) for part in stem.stages]
        stages.append(Join(self._stem_stage(stem.positional_encoding)))
        return _staged(stages, net.blocks, net.head, opt)

    def _stem_stage(self, part: Any) -> nn.Sequential:
        """Convolution, normalisation, neuron, and the pooling before or after the neuron."""
        conv, norm, *pool = part.conv_bn.block
        after = self.opt.pooling == "after_neuron"
        return nn.Sequential(conv, norm, *([part.neuron, *pool] if after else [*pool, part.neuron]))


class QKFormer(ModelSource):
    """Parts of the patch embeddings, and the attention and the MLP of every block, are stages.

    SpikingJelly's model reads out the mean over time; here every step is read out, and the mean of the logits is the
    same.
    """

    name = "qkformer"
    summary = "SpikingJelly's QKFormer (hierarchical, Q-K attention); default HST-10-512"
    source = "SpikingJelly 2.0, activation_based/model/qkformer.py; Zhou et al., NeurIPS 2024"
    options: ClassVar[type[QKFormerOptions]] = QKFormerOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`."""
        opt: QKFormerOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=4)
        ensure_torchvision()
        from spikingjelly.activation_based.model import qkformer

        net = qkformer.QKFormer(
            in_channels=channels, num_classes=classes, embed_dims=opt.width, num_heads=opt.heads, depths=opt.depths,
            mlp_ratio=opt.mlp_ratio, qka_type=opt.attention, spiking_neuron=partial(_neuron, opt),
        )  # fmt: skip
        _take_apart(net, opt)
        first, second, third = net.patch_embed1, net.patch_embed2, net.patch_embed3
        stages: list[nn.Module] = [nn.Sequential(first.conv1, first.bn1, first.pool1, first.lif1)]
        branch = nn.Sequential(first.conv2, first.bn2, first.pool2, first.lif2, first.conv3, first.bn3, first.lif3)
        stages += [Join(branch, first.shortcut), *_block_stages(net.stage1)]
        for embed, blocks in ((second, net.stage2), (third, net.stage3)):
            branch = nn.Sequential(embed.conv1, embed.bn1, embed.pool, embed.lif1, embed.conv2, embed.bn2, embed.lif2)
            stages += [Join(branch, embed.shortcut), *_block_stages(blocks)]
        head = layer.Linear(opt.width, classes, step_mode="m")
        head.weight, head.bias = net.head.weight, net.head.bias
        return StagedModel(stages, nn.Sequential(TokenMean(), head), opt.norm)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{width} channels cannot be divided among {heads} heads")


def _neuron(options: NeuronOptions, **_: Any) -> MemoryModule:
    """A neuron for SpikingJelly's constructors, which pass the step mode that ours have anyway."""
    return make_neuron(options)


def _staged(stages: list[nn.Module], blocks: Iterable[Any], head: nn.Module, opt: TransformerOptions) -> StagedModel:
    return StagedModel([*stages, *_block_stages(blocks)], nn.Sequential(TokenMean(), head), opt.norm)


def _block_stages(blocks: Iterable[Any]) -> list[nn.Module]:
    """``x + attention(x)`` and ``x + mlp(x)`` of every block."""
    return [Join(_branch(part)) for block in blocks for part in (block.attn, block.mlp)]


def _branch(part: Any) -> nn.Sequential:
    """An attention or an MLP whose last neuron stands behind it, so that what comes out can be seen: spikes."""
    last = next(name for name in ("proj_lif", "neuron2", "lif2") if hasattr(part, name))
    neuron = getattr(part, last)
    setattr(part, last, nn.Identity())
    return nn.Sequential(Tokens(part), neuron)


def _take_apart(net: nn.Module, opt: TransformerOptions) -> None:
    """Layers with a step mode instead of containers without one, and the attention's own threshold.

    Where SpikingJelly's constructors are given a neuron, they give it the same threshold everywhere.
    """
    from spikingjelly.activation_based.layer.attention import QKAttention, SpikingSelfAttention

    threshold = opt.model_copy(update={"v_threshold": opt.attention_threshold})
    for name, child in net.named_children():
        _take_apart(child, opt)
        setattr(net, name, _in_steps(child, opt))
    if isinstance(net, (QKAttention, SpikingSelfAttention)):
        net.attn_lif = make_neuron(threshold)


def _in_steps(module: nn.Module, opt: TransformerOptions) -> nn.Module:
    """``module``, or one that computes the same with the same weights and has a step mode."""
    if isinstance(module, layer.SeqToANNContainer):
        return nn.Sequential(*module)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return make_norm(module.num_features, opt.norm, dims=1 if isinstance(module, nn.BatchNorm1d) else 2)
    if type(module) is nn.MaxPool2d:
        return layer.MaxPool2d(module.kernel_size, module.stride, module.padding, step_mode="m")
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return _conv_in_steps(module)
    return module


def _conv_in_steps(conv: Any) -> nn.Module:
    kind = layer.Conv1d if isinstance(conv, nn.Conv1d) else layer.Conv2d
    shape = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
    with torch.device("meta"):  # the weights come from `conv`
        new = kind(conv.in_channels, conv.out_channels, bias=conv.bias is not None, step_mode="m", **shape)
    new.weight, new.bias = conv.weight, conv.bias
    return new
