"""Blocks that fuse feature levels, and the check that levels fit each other."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.conv_norm import ConvNorm


class RepVGGBlock(nn.Module):
    """Sum of a 3×3 and a 1×1 convolution, each with its norm, then SiLU (arXiv 2101.03697).

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepCSPLayer(nn.Module):
    """Sum of two 1×1 convolutions, one of which goes on through RepVGG blocks.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Number of RepVGG blocks.
        hidden_channels: Width of both paths. Default: ``out_channels``. With another width, a 1×1
            convolution follows the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        width = hidden_channels or out_channels
        self.conv1 = ConvNorm(in_channels, width, 1, act='SiLU')
        self.conv2 = ConvNorm(in_channels, width, 1, act='SiLU')
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(width) for _ in range(num_blocks)))
        self.conv3 = (
            nn.Identity() if width == out_channels else ConvNorm(width, out_channels, 1, act='SiLU')
        )

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H, W)."""
        return self.conv3(self.bottlenecks(self.conv1(*features)) + self.conv2(*features))


class SplitCSPLayer(nn.Module):
    """One 1×1 convolution, a half of whose output goes on through RepVGG blocks; then their sum.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Number of RepVGG blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, 2 * out_channels, 1, act='SiLU')
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(out_channels) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C', H, W) to (B, C, H, W)."""
        kept, passed = self.conv1(x).chunk(2, dim=1)
        return kept + self.bottlenecks(passed)


class RepCSPELANBlock(nn.Module):
    """CSP-ELAN fusion block of D-FINE.

    A 1×1 convolution gives twice the output's width, split in halves. The second half goes through
    two branches, one after the other. Another 1×1 convolution reduces halves and branches.

    Args:
        in_channels: Channels of the concatenated input.
        out_channels: Channels of the output.
        branch_channels: Width of the two branches.
        num_blocks: Number of RepVGG blocks of each branch.
        csp: Class of the CSP layer of each branch.
        convs: Whether a 3×3 convolution ends each branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branch_channels: int,
        num_blocks: int,
        csp: type[nn.Module] = RepCSPLayer,
        convs: bool = True,
    ) -> None:
        super().__init__()

        def branch(channels: int) -> nn.Sequential:
            layers = [csp(channels, branch_channels, num_blocks)]
            if convs:
                layers.append(ConvNorm(branch_channels, branch_channels, 3, act='SiLU'))
            return nn.Sequential(*layers)

        self.cv1 = ConvNorm(in_channels, out_channels * 2, 1, act='SiLU')
        self.cv2 = branch(out_channels)
        self.cv3 = branch(branch_channels)
        self.cv4 = ConvNorm(out_channels * 2 + branch_channels * 2, out_channels, 1, act='SiLU')

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H, W)."""
        halves = self.cv1(*features).chunk(2, dim=1)
        branch1 = self.cv2(halves[1])
        branch2 = self.cv3(branch1)
        return self.cv4(*halves, branch1, branch2)


def check_sizes(feats: Sequence[Tensor], strides: Sequence[int]) -> None:
    """Check that each level l (B, C_l, H_l, W_l), finest first, is an integer multiple of the last.

    Args:
        feats: The levels.
        strides: Their strides in pixels.

    Raises:
        ValueError: The image size is not divisible by the largest stride.
    """
    sizes = [(int(feat.shape[-2]), int(feat.shape[-1])) for feat in feats]
    stride = strides[-1]
    for size, feat_stride in zip(sizes, strides, strict=True):
        ratio = stride // feat_stride
        if size != (sizes[-1][0] * ratio, sizes[-1][1] * ratio):
            height, width = (n * strides[0] for n in sizes[0])
            raise indivisible(f'about {width}x{height}', stride)


def indivisible(pixels: str, stride: int) -> UserError:
    """The error of an input whose sides are not divisible by a stride.

    Args:
        pixels: Width and height of the input, as text.
        stride: The stride in pixels.
    """
    return UserError(
        f'the input of {pixels} pixels is not divisible by {stride} on both sides: change the '
        'scale of the Resize in the pipeline, or set '
        f'model.data_preprocessor.pad_size_divisor={stride}'
    )
