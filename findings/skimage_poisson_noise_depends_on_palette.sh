#!/usr/bin/env bash
# scikit-image's Poisson noise on a pixel depends on how many different values the rest of the
# image has.
#
# Versions: scikit-image 0.26.0, numpy 2.4.6.
# Expected: photon noise: its strength at a pixel follows from that pixel's brightness alone.
# Seen: random_noise(mode="poisson") takes the number of different values in the whole array, up
#   to the next power of two, for the number of photons at brightness 1. The same grey area of 0.5
#   gets this standard deviation:
#     image of 1 value: 0.489   2 values: 0.393   16 values: 0.176   256 values: 0.044
#     the image of 2 values, handed over in one array with one of 256: 0.044
#   With one value there is one photon: many pixels end at 0 or 1.
# Why it matters: as a test of robustness it is far harder on flat pictures (digits, icons, line
#   drawings) than on photographs, it gets milder where pictures are noised as one array rather
#   than one by one, and resizing before it (which makes new values) changes its strength. numpy's
#   own rng.poisson(image * photons) / photons has none of this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scikit-image==0.26.0

"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from skimage.util import random_noise


def picture(values: int) -> np.ndarray:
    """100 x 256 pixels of 0.5; the first row makes it ``values`` different values."""
    image = np.full((100, 256), 0.5)
    image[0, : values - 1] = np.linspace(0, 0.49, values - 1)
    assert len(np.unique(image)) == values
    return image


found = {
    values: random_noise(picture(values), mode="poisson", rng=0)[1:].std()
    for values in (1, 2, 16, 256)
}
together = random_noise(np.stack([picture(2), picture(256)]), mode="poisson", rng=0)[0, 1:].std()
print(
    {values: round(float(deviation), 3) for values, deviation in found.items()},
    f"in one array: {together:.3f}",
)
assert found[1] > 0.45 and found[2] > 0.35 and 0.15 < found[16] < 0.2 and found[256] < 0.05
assert together < 0.05
PYTHON
