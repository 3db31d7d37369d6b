"""Convert a network to ONNX with metadata, and compare the two.

    image         (batch, 3, height, width) float32, RGB from 0 to 1; any batch, height and width
    probability   (batch, classes, height, width) float32, from 0 to 1

The packages of the extra `onnx` are imported only when they are used.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import seeds
from common.command_line import UserError
from model.ensemble import Ensemble
from train.exchange.exported_model import KEY

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference in probability that is allowed."""
IMAGE, PROBABILITY = "image", "probability"
# A multiple of the levels' stride; a batch of another size; a low image. The last two need padding
RANDOM_SIZES_BHW = ((1, 128, 192), (2, 97, 130), (1, 7, 300))


class Probability(nn.Module):
    """A network followed by a sigmoid; of an ensemble, the mean over its members."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Predict (B, 3, H, W) float -> (B, C, H, W) probability."""
        models = members_of(self.model)
        first, *others = (torch.sigmoid(model(image_BCHW)) for model in models)
        return sum(others, first) / len(models)


def members_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of an ensemble, or a network alone."""
    return [*model.members] if isinstance(model, Ensemble) else [model]


def check_packages() -> None:
    """Raise UserError that says what to install, if a package is missing."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"out=*.onnx needs {', '.join(PACKAGES)} ({error}); install them: pip install"
                " --editable '.[onnx]' in the project's folder"
            ) from None


def convert(model: nn.Module, about: Mapping[str, Any]) -> bytes:
    """Convert a network in evaluation mode, on the CPU, to the bytes of an ONNX file."""
    strides: set[Any] = {member.stride for member in members_of(model)}
    sides: list[Any] = ["height", "width"]
    example_BCHW, stride = torch.zeros(2, 3, 97, 130), 0
    if len(strides) == 1:  # else each member pads for itself
        (stride,) = strides
        example_BCHW = torch.zeros(2, 3, 3 * stride, 4 * stride)
        sides = [stride * torch.export.Dim(name, min=2) for name in ("h", "w")]
    dynamic = {0: "batch", 2: sides[0], 3: sides[1]}
    # it warns about optional packages, and about calls within itself
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Probability(model),
            (example_BCHW,),
            dynamo=True,
            input_names=[IMAGE],
            output_names=[PROBABILITY],
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if stride:
        pad_and_cut(proto.graph, stride)
    for node in proto.graph.node:
        del node.metadata_props[:]  # the exporting machine's paths and stack traces
    for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
        # torch writes formulas here: it does not know that the padding is cut off again
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    proto.metadata_props.add(key=KEY, value=json.dumps(about))
    return proto.SerializeToString()


def pad_and_cut(graph: Any, stride: int) -> None:
    """Put padding before a graph, and cut it off after it, as the network's `num_padded` says.

    The graph takes sides of two strides or more, in whole strides. To follow through the levels of
    a network what padding does to their size would take torch minutes.
    """
    from onnx import helper, numpy_helper

    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [
                f"padded_{name}" if name in (IMAGE, PROBABILITY) else name for name in names
            ]
    for name, values in {
        "stride": [stride],
        "least": [2 * stride],
        "zero": [0],
        "no_pads": [0] * 6,
        "corner": [0, 0],
        "sides": [2, 3],
    }.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"pad_{name}"))
    before = [
        helper.make_node("Shape", [IMAGE], ["pad_size"], start=2, end=4),
        helper.make_node("Sub", ["pad_zero", "pad_size"], ["pad_negative"]),
        helper.make_node("Mod", ["pad_negative", "pad_stride"], ["pad_missing"]),
        helper.make_node("Sub", ["pad_least", "pad_size"], ["pad_to_least"]),
        helper.make_node("Max", ["pad_missing", "pad_to_least"], ["pad_after"]),
        helper.make_node("Concat", ["pad_no_pads", "pad_after"], ["pad_pads"], axis=0),
        helper.make_node("Pad", [IMAGE, "pad_pads"], [f"padded_{IMAGE}"], mode="edge"),
    ]
    cut = ["pad_corner", "pad_size", "pad_sides"]
    after = helper.make_node("Slice", [f"padded_{PROBABILITY}", *cut], [PROBABILITY])
    nodes = [*before, *graph.node, after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def check(content: bytes, model: nn.Module, images: Iterable[tuple[str, Tensor]]) -> float:
    """Return the largest difference in probability between an ONNX file and its network.

    `images`: (name, (B, 3, H, W) float). Raises UserError if it is above TOLERANCE.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for name, image_BCHW in images:
        with torch.no_grad():
            expected_BCHW = Probability(model)(image_BCHW).numpy()
        (probability_BCHW,) = session.run([PROBABILITY], {IMAGE: image_BCHW.numpy()})
        difference = float(np.abs(probability_BCHW - expected_BCHW).max())
        if not difference <= TOLERANCE:  # true for NaN too
            raise UserError(
                f"the ONNX file differs from the model by {difference:.2g} in probability on"
                f" {name}; {TOLERANCE:g} is allowed; not written"
            )
        largest = max(largest, difference)
    return largest


def random_images() -> Iterable[tuple[str, Tensor]]:
    """Yield (name, noise of (B, 3, H, W) float32) in several sizes."""
    for batch, height, width in RANDOM_SIZES_BHW:
        rng = seeds.generator(0, "onnx", height, width)
        image_BCHW = rng.random((batch, 3, height, width), np.float32)
        yield f"{batch} random image(s) of {width} x {height} px", torch.from_numpy(image_BCHW)
