import math

import pytest
import torch
from scipy import stats
from torch import nn
from torchvision.models.resnet import BasicBlock

from noisy_student import MODELS, build
from noisy_student.models import Residual


@pytest.mark.parametrize(
    ("name", "count"),
    {"Convnet5": 104042, "Convnet6": 113322, "Resnet6": 215146, "Resnet9": 317930}.items(),
)
def test_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == count


@pytest.mark.parametrize("size", [16, 32, 45, 96])
@pytest.mark.parametrize("name", MODELS)
def test_any_size_and_number_of_classes(name: str, size: int) -> None:
    torch.manual_seed(0)
    logits = build(name, 7)(torch.randn(64, 3, size, size))
    assert logits.shape == (64, 7)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(64) % 7)
    assert abs(loss.item() - math.log(7)) < 1  # a fresh model knows nothing


def test_noise_is_off_in_eval_mode() -> None:
    torch.manual_seed(0)
    model, x = build("Resnet9", dropout=0.5, stochastic_depth=0.5), torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_have_the_deviation_of_he_et_al(name: str) -> None:
    """sqrt(2 / (k^2 outputs)), He et al. (2015), equation 14, for the backward pass."""
    torch.manual_seed(0)
    for module in build(name).modules():
        if isinstance(module, torch.nn.Conv2d):
            outputs, _, k, _ = module.weight.shape
            assert module.weight.std().item() == pytest.approx(
                math.sqrt(2 / (k * k * outputs)), rel=0.1
            )


def test_resnet9_is_made_of_torchvisions_basic_blocks() -> None:
    """The same logits from torchvision's blocks with the same weights, in training and in
    evaluation mode.
    """
    torch.manual_seed(0)
    ours, x = build("Resnet9", dropout=0.0), torch.randn(8, 3, 32, 32)
    blocks: list[nn.Module] = [BasicBlock(32, 32)]
    for inputs in (32, 64):
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, 2 * inputs, 1, 2, bias=False), nn.BatchNorm2d(2 * inputs)
        )
        blocks.append(BasicBlock(inputs, 2 * inputs, 2, shortcut))
    names = {
        "branch.0": "conv1",
        "branch.1": "bn1",
        "branch.3": "conv2",
        "branch.4": "bn2",
        "shortcut": "downsample",
    }
    for block, theirs in zip(list(ours)[2:5], blocks, strict=True):  # type: ignore[call-overload]
        state = block.state_dict()
        theirs.load_state_dict(
            {
                key.replace(old, new): value
                for key, value in state.items()
                for old, new in names.items()
                if key.startswith(old)
            }
        )
    same = nn.Sequential(*list(ours)[:2], *blocks, *list(ours)[5:])  # type: ignore[call-overload]
    for training in (True, False):
        assert torch.allclose(ours.train(training)(x), same.train(training)(x), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_map_is_an_eighth_of_the_image(name: str) -> None:
    model = build(name)
    assert model[:-4](torch.zeros(1, 3, 32, 48)).shape == (1, 128, 4, 6)  # type: ignore[index]


def test_each_image_skips_a_branch_by_itself() -> None:
    """Those that do not have it doubled, so that its mean stays what it is (Huang et al., 2016, as
    torchvision scales it).
    """
    torch.manual_seed(0)
    out = Residual(nn.Identity(), nn.Identity(), 0.5).train()(torch.ones(400, 1, 1, 1)).flatten()
    assert (
        set(out.tolist()) == {1.0, 3.0}
        and stats.binomtest(int((out == 1).sum()), 400, 0.5).pvalue > 1e-3
    )


def test_stochastic_depth_rises_linearly() -> None:
    for name in ("Resnet6", "Resnet9"):
        drops = [
            m.p
            for m in build(name, stochastic_depth=0.3).modules()
            if type(m).__name__ == "StochasticDepth"
        ]
        assert drops == pytest.approx([0.1, 0.2, 0.3])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean Resnet9"):
        build("resnet9")
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        build("Resnet9", dropout=1.5)
    with pytest.raises(ValueError, match="two classes"):
        build("Resnet9", 1)


@pytest.mark.parametrize(
    ("name", "strides"),
    {
        "Convnet5": [2, 1, 2, 2],
        "Convnet6": [1, 2, 1, 2, 2],
        "Resnet6": [1, 2, 1, 1, 2, 2, 2, 2],
        "Resnet9": [1, 2, 1, 1, 2, 2, 1, 2, 2, 1],
    }.items(),
)
def test_where_the_images_are_halved(name: str, strides: list[int]) -> None:
    assert [m.stride[0] for m in build(name).modules() if isinstance(m, nn.Conv2d)] == strides
