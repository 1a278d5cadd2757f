#!/usr/bin/env bash
# In a model quantised by onnxruntime's quantize_dynamic, an image's class depends on the other
# images of its batch.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Expected: a network without batch norm in training mode treats each image of a batch by itself;
#   in 8 bits too.
# Seen: "dynamic" takes the scale of the activations from the largest and smallest of the whole
#   batch. One bright image leaves few of the 256 steps to the others. Of 1,000 inputs so many
#   change their class:
#     float:     0 in one batch in place of one by one,   0 in batches of 10 and one bright image
#     quantised: 14 in one batch in place of one by one, 104 in batches of 10 and one bright image
# Why it matters: the accuracy of such a model depends on the size and the order of the batches in
#   which it was measured; a single image in service gets other scores than in the test; and
#   pseudo-labels from it change with the shuffling. Static quantisation, with scales fixed
#   beforehand, has none of this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"

venv/bin/python - <<'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable(logging.WARNING)  # its advice to pre-process
rng = np.random.default_rng(0)
weights = {"w": rng.normal(size=(64, 128)) / 8, "v": rng.normal(size=(128, 10)) / 11}
graph = helper.make_graph(
    [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ],
    "two-layers",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
    [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
)
onnx.save(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10),
    "float.onnx",
)
quantize_dynamic("float.onnx", "quantised.onnx")

images = rng.normal(size=(1000, 64)).astype(np.float32)
bright = 20 * images[:1]
for name in ("float", "quantised"):
    session = onnxruntime.InferenceSession(f"{name}.onnx")

    def classes(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {"x": batch})[0].argmax(1)

    alone = np.concatenate([classes(image[None]) for image in images])
    beside = np.concatenate(
        [classes(np.concatenate([part, bright]))[:-1] for part in np.split(images, 100)]
    )
    changed = (alone != classes(images)).sum(), (alone != beside).sum()
    print(
        f"{name}: {changed[0]} in one batch in place of one by one,"
        f" {changed[1]} in batches of 10 and one bright image"
    )
    assert changed == (0, 0) if name == "float" else changed[0] > 0 and changed[1] > 50
PYTHON
