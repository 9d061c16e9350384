"""MA-Net (Zhao, Liu, Wang, TIP 2021): local attention and multi-scale features of a face, frame by frame.

A shared stem and two residual stages; then a local branch, in which each quadrant of the map has attention blocks of
its own, and a global branch of multi-scale blocks. There is no convolution or attention over time. Submodules carry the
names of the published checkpoints, so that these load strictly. Features are the means over both branches' maps, [8 C +
8 C] for C base channels, 1024 for the published size; its two classifiers are not built.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUADRANTS = (1, 2, 3, 4)
GROUPS = (1, 2, 3, 4)
BLOCKS_PER_STAGE = 2
GATE_RATIO = 16
STRIDE_BEFORE_QUADRANTS = 8
HEADS = ("fc_1.", "fc_2.")
"""Keys of the published classifiers."""


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3 x 3 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """relu(x' + g(bn2(conv2(relu(bn1(conv1(x))))))); x' is x, or its projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.gate(hidden) + shortcut)

    def gate(self, hidden: Tensor) -> Tensor:
        """Return the residual as it is added."""
        return hidden


class ChannelGate(nn.Module):
    """Weights of the channels from their means and maxima, through one small network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // GATE_RATIO)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        pooled = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        return x * torch.sigmoid(pooled)[:, :, None, None]


class GateConvolution(nn.Module):
    """A 7 x 7 convolution of two maps to one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, H, W] to [N, 1, H, W]."""
        result: Tensor = self.bn(self.conv(x))
        return result


class SpatialGate(nn.Module):
    """Weights of the places from the maxima and means over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = GateConvolution()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        return x * torch.sigmoid(self.spatial(torch.stack([x.amax(1), x.mean(1)], dim=1)))


class ConvolutionalAttention(nn.Module):
    """CBAM: channels, then places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(channels), SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        result: Tensor = self.SpatialGate(self.ChannelGate(x))
        return result


class AttentionBlock(ResidualBlock):
    """A residual block whose residual passes CBAM."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.cbam = ConvolutionalAttention(outputs)

    def gate(self, hidden: Tensor) -> Tensor:
        """Attend."""
        result: Tensor = self.cbam(hidden)
        return result


class MultiScaleBlock(nn.Module):
    """Two chains of convolutions over four groups of channels, each seeing the one before; their sum is added.

    Both chains go from group 1 to 4; reversed, the second goes from 4 to 1. Either way a group has its own convolution
    and its own place in the result, so that only what a convolution has seen before differs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, reverse_second_chain: bool) -> None:
        super().__init__()
        self.reverse_second_chain, width = reverse_second_chain, outputs // len(GROUPS)
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        for chain in (1, 2):
            for group in GROUPS:
                self.add_module(f"conv{chain}_2_{group}", conv3x3(width, width))
                self.add_module(f"bn{chain}_2_{group}", nn.BatchNorm2d(width))
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        groups = F.relu(self.bn1(self.conv1(x))).chunk(len(GROUPS), dim=1)
        second = GROUPS[::-1] if self.reverse_second_chain else GROUPS
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self._chain(1, groups, GROUPS) + self._chain(2, groups, second) + shortcut)

    def _chain(self, chain: int, groups: tuple[Tensor, ...], order: tuple[int, ...]) -> Tensor:
        given, done = dict(zip(GROUPS, groups, strict=True)), dict[int, Tensor]()
        for before, group in zip((None, *order[:-1]), order, strict=True):
            seen = given[group] if before is None else F.relu(done[before]) + given[group]
            convolve, norm = (self.get_submodule(f"{kind}{chain}_2_{group}") for kind in ("conv", "bn"))
            done[group] = norm(convolve(seen))
        return torch.cat([done[group] for group in GROUPS], dim=1)


class MultiAttentionNetwork(nn.Module):
    """Frames [N, 3, S, S] in [0, 1] to features [N, 16 C]."""

    def __init__(self, base_channels: int, reverse_second_chain: bool) -> None:
        super().__init__()
        one, two, four, eight = (base_channels * factor for factor in (1, 2, 4, 8))

        def multi_scale(inputs: int, outputs: int, stride: int) -> nn.Module:
            return MultiScaleBlock(inputs, outputs, stride, reverse_second_chain)

        self.conv1, self.bn1 = nn.Conv2d(3, one, 7, 2, padding=3, bias=False), nn.BatchNorm2d(one)
        self.layer1, self.layer2 = stage(ResidualBlock, one, one, 1), stage(ResidualBlock, one, two, 2)
        for place in QUADRANTS:
            self.add_module(f"layer3_1_p{place}", stage(AttentionBlock, two, four, 2))
            self.add_module(f"layer4_1_p{place}", stage(AttentionBlock, four, eight, 1))
        self.layer3_2, self.layer4_2 = stage(multi_scale, two, four, 2), stage(multi_scale, four, eight, 2)

    def forward(self, frames: Tensor) -> Tensor:
        """Concatenate the local and the global features."""
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(frames))), 3, 2, padding=1)
        shared = self.layer2(self.layer1(stem))
        regions = torch.stack(
            [self._region(place, part) for place, part in zip(QUADRANTS, quadrants(shared), strict=True)]
        )
        return torch.cat([regions.mean(0), self.layer4_2(self.layer3_2(shared)).mean((2, 3))], dim=1)

    def _region(self, place: int, part: Tensor) -> Tensor:
        third, fourth = (self.get_submodule(f"layer{number}_1_p{place}") for number in (3, 4))
        result: Tensor = fourth(third(part)).mean((2, 3))
        return result


def stage(block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the blocks of a stage; the first changes the shape."""
    rest = [block(outputs, outputs, 1) for _ in range(BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return what makes a block's input fit its output, None where it does."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def quadrants(x: Tensor) -> list[Tensor]:
    """Cut [N, C, H, W] into its upper left, upper right, lower left and lower right quarter."""
    return [part for half in x.chunk(2, dim=2) for part in half.chunk(2, dim=3)]
