import math

import pytest
import torch
from torch import nn

from brats_lightning.models.blocks import (
    AttentionGate,
    AveragedResidualBlock,
    BlockMean,
    ConvBlock,
    Convolution,
    InstanceNorm,
    NetworkSettingError,
    ResidualBlock,
    SingleConvBlock,
    initialise,
    make_activation,
    make_norm,
    make_upsampling,
    per_axis,
    per_level,
)

ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)
SETTINGS = ("instance", "leaky_relu", 0.0)


@pytest.mark.parametrize("gradient_layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("batch", [1, 3])
def test_instance_norm_equals_torch(batch, layout, gradient_layout):
    torch.manual_seed(0)
    mine, theirs = InstanceNorm(5), nn.InstanceNorm3d(5, affine=True)
    state = {"weight": torch.randn(5), "bias": torch.randn(5)}
    mine.load_state_dict(state)
    theirs.load_state_dict(state)
    x, gradient = torch.randn(batch, 5, 4, 3, 6) * 3 + 2, torch.randn(batch, 5, 4, 3, 6)
    a, b = x.clone(memory_format=layout).requires_grad_(), x.clone().requires_grad_()
    out, expected = mine(a), theirs(b)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    out.backward(gradient.contiguous(memory_format=gradient_layout))
    expected.backward(gradient)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(mine.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(mine.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(mine.eval()(x), expected)  # no running statistics


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_in_bfloat16(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 5, 4).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        out = InstanceNorm(8)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), nn.functional.instance_norm(x), atol=0.04, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_of_one_voxel_is_the_bias(batch):
    norm = InstanceNorm(3)
    nn.init.constant_(norm.bias, 0.5)
    x = torch.tensor([1.0, -2.0, 0.0]).reshape(1, 3, 1, 1, 1).repeat(batch, 1, 1, 1, 1).requires_grad_()
    out = norm(x)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (20, 4), (6, 2), (5, 1)])
def test_group_norm_takes_the_groups_that_fit(channels, groups):
    assert make_norm("group", channels).num_groups == groups


def test_activations_by_value():
    x = torch.tensor([-1.0, 2.0])
    values = {name: make_activation(name)(x.clone())[0].item() for name in ("leaky_relu", "relu", "elu")}
    assert values == pytest.approx({"leaky_relu": -0.01, "relu": 0.0, "elu": math.exp(-1) - 1})
    assert make_activation("silu")(x)[1].item() == pytest.approx(2 / (1 + math.exp(-2)))


@pytest.mark.parametrize("name", ["leaky_relu", "relu", "elu"])
def test_activations_that_can_work_in_place(name):
    x = torch.randn(3)
    assert make_activation(name)(x) is x


@pytest.mark.parametrize(("size", "down"), [((4, 6, 8), (2, 3, 4)), ((5, 3, 1), (3, 2, 1))])
@pytest.mark.parametrize("block", [SingleConvBlock, ConvBlock, ResidualBlock, AveragedResidualBlock])
def test_strided_block_rounds_up(block, size, down):
    assert block(2, 4, THREE, TWO, *SETTINGS)(torch.randn(1, 2, *size)).shape == (1, 4, *down)


def test_plain_block_is_convolution_norm_activation_twice():
    torch.manual_seed(0)
    block = ConvBlock(2, 3, (1, 3, 3), (1, 2, 2), *SETTINGS)
    x = torch.randn(2, 2, 4, 6, 5)
    y = nn.functional.conv3d(x, block.conv1.weight, stride=(1, 2, 2), padding=(0, 1, 1))
    y = nn.functional.leaky_relu(nn.functional.instance_norm(y))
    y = nn.functional.conv3d(y, block.conv2.weight, padding=(0, 1, 1))
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(nn.functional.instance_norm(y)))


def test_residual_block_without_residue_is_its_shortcut():
    block = ResidualBlock(3, 3, THREE, ONE, *SETTINGS)
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(1, 3, 4, 4, 4)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x, 0.01))
    changing = ResidualBlock(3, 5, THREE, TWO, *SETTINGS)
    nn.init.zeros_(changing.norm2.weight)
    expected = nn.functional.conv3d(x, changing.shortcut.weight, stride=2)
    torch.testing.assert_close(changing(x), nn.functional.leaky_relu(expected))


def test_averaged_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    block = AveragedResidualBlock(2, 3, THREE, (1, 2, 2), *SETTINGS).apply(initialise)
    x = torch.randn(2, 2, 3, 4, 6)
    expected = nn.functional.conv3d(nn.functional.avg_pool3d(x, (1, 2, 2)), block.shortcut[1].weight)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(nn.functional.instance_norm(expected)))
    same = AveragedResidualBlock(2, 2, THREE, ONE, *SETTINGS).apply(initialise)
    torch.testing.assert_close(same(x), nn.functional.leaky_relu(x))
    nn.init.ones_(same.norm2.weight)
    residue = same.norm2(same.conv2(same.activation(same.norm1(same.conv1(x)))))
    torch.testing.assert_close(same(x), nn.functional.leaky_relu(x + residue))


def test_means_of_blocks():
    x = torch.arange(5.0).reshape(1, 1, 1, 1, 5).expand(1, 1, 3, 1, 5)
    means = BlockMean((1, 2, 2))(x)  # of 0 1 | 2 3 | 4 along x; along y there is one voxel
    assert means.shape == (1, 1, 3, 1, 3)
    torch.testing.assert_close(means[0, 0, 0, 0], torch.tensor([0.5, 2.5, 4.0]))
    x = torch.randn(2, 3, 4, 6, 9)
    torch.testing.assert_close(BlockMean((2, 3, 3))(x), nn.functional.avg_pool3d(x, (2, 3, 3)))


def test_blocks_leave_their_input_alone():
    for kind in (SingleConvBlock, ConvBlock, ResidualBlock, AveragedResidualBlock):
        block = kind(2, 2, THREE, ONE, *SETTINGS)
        x = torch.randn(1, 2, 3, 3, 3)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


def test_dropout_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    block = ConvBlock(1, 64, THREE, ONE, "instance", "leaky_relu", 0.5)
    seen = []
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 1, 4, 4, 4)
    block(x)
    zeros = (seen[0] == 0).flatten(2).float().mean(2)
    assert set(zeros.unique().tolist()) == {0.0, 1.0}
    assert 0.3 < zeros.mean() < 0.7
    torch.testing.assert_close(block.eval()(x), block(x))


def test_trilinear_upsampling_is_interpolate_then_convolve():
    torch.manual_seed(0)
    up = make_upsampling("trilinear", 4, 2, (1, 2, 3))
    x = torch.randn(1, 4, 3, 3, 2)
    wide = nn.functional.interpolate(x, size=(3, 6, 6), mode="trilinear")
    torch.testing.assert_close(up(x), up[0](wide))


def test_transposed_upsampling_fills_each_block():
    up = make_upsampling("transposed", 1, 1, (1, 2, 2))
    nn.init.ones_(up.weight)
    nn.init.zeros_(up.bias)
    x = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    expected = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(up(x), expected)


@pytest.mark.parametrize(("stride", "size", "coarse"), [(TWO, (5, 4, 3), (3, 2, 2)), ((1, 2, 2), (3, 4, 5), (3, 2, 3))])
def test_attention_gate_by_its_formula(stride, size, coarse):
    torch.manual_seed(0)
    gate = AttentionGate(4, 6, stride)
    skip, gating = torch.randn(2, 4, *size), torch.randn(2, 6, *coarse)
    attention = gate.attention(skip, gating)
    assert attention.shape == (2, 1, *size)
    assert 0 < attention.min() < attention.max() < 1
    torch.testing.assert_close(gate(skip, gating), skip * attention)
    # at the first voxel interpolation extends the first coefficient of the coarse grid
    block = skip[0, :, : stride[0], : stride[1], : stride[2]]
    inner = (gate.theta.weight * block).sum((1, 2, 3, 4)) + gate.phi.weight[:, :, 0, 0, 0] @ gating[0, :, 0, 0, 0]
    psi = gate.psi.weight[0, :, 0, 0, 0] @ (inner + gate.phi.bias).relu() + gate.psi.bias[0]
    torch.testing.assert_close(attention[0, 0, 0, 0, 0], psi.sigmoid())


def test_attention_gate_opens_and_closes():
    gate = AttentionGate(4, 6, TWO)
    skip, gating = torch.randn(1, 4, 4, 4, 4), torch.randn(1, 6, 2, 2, 2)
    nn.init.zeros_(gate.psi.weight)
    nn.init.constant_(gate.psi.bias, -200)
    assert not gate(skip, gating).any()
    nn.init.constant_(gate.psi.bias, 200)
    torch.testing.assert_close(gate(skip, gating), skip)


@pytest.mark.parametrize("make", [make_activation, lambda name: make_norm(name, 4)])
def test_unknown_name_lists_the_options(make):
    with pytest.raises(NetworkSettingError, match="must be one of"):
        make("nothing")


def test_near_miss_is_offered():
    with pytest.raises(NetworkSettingError, match=r"did you mean leaky_relu\?"):
        make_activation("leakyrelu")


def test_per_level_and_triple():
    assert per_level("dropout", 0.1, 3) == [0.1, 0.1, 0.1]
    assert per_level("blocks", (1, 2), 2) == [1, 2]
    with pytest.raises(NetworkSettingError, match="strides must be one value or 4, one per step down, got 3"):
        per_level("strides", [1, 2, 2], 4, "step down")
    assert per_axis("strides", 2) == TWO
    assert per_axis("strides", [1, 2, 2]) == (1, 2, 2)
    for bad in (0, [2, 2], [2, 2, 0]):
        with pytest.raises(NetworkSettingError, match="three of them"):
            per_axis("strides", bad)


@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2])
def test_gradient_of_two_slices_in_bfloat16(stride):
    torch.manual_seed(0)
    block = Convolution(16, 16, (3, 3, 3), per_axis("stride", stride))
    x = torch.randn(1, 16, 2, 8, 8)
    expected = torch.autograd.grad(block(x).square().sum(), block.weight)[0]
    # What the faulty kernel leaves unwritten shows what was there before.
    junk = [torch.full((2**n,), float("nan")) for n in range(6, 21) for _ in range(2)]
    del junk
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x.bfloat16())
    gradient = torch.autograd.grad(out.float().square().sum(), block.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
