import math

import pytest
import torch

from noisy_student import MODELS, build


@pytest.mark.parametrize(("name", "count"), {"Convnet5": 104042, "Convnet6": 113322, "Resnet6": 215146, "Resnet9": 317930}.items())
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
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / (k * k * outputs)), rel=0.1)


def test_stochastic_depth_rises_linearly() -> None:
    drops = [m.p for m in build("Resnet9", stochastic_depth=0.3).modules() if type(m).__name__ == "StochasticDepth"]
    assert drops == pytest.approx([0.1, 0.2, 0.3])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean Resnet9"):
        build("resnet9")
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        build("Resnet9", dropout=1.5)
    with pytest.raises(ValueError, match="two classes"):
        build("Resnet9", 1)
