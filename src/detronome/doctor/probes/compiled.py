"""Small real calls of packages with compiled parts; of those that are optional, where they are installed."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

from detronome.doctor.findings import Facts

__all__ = [
    "CORE",
    "SERVING",
    "av",
    "coco_api",
    "core_imports",
    "hotcoco",
    "onnx",
    "onnxruntime",
    "opencv",
    "openvino",
    "pillow",
    "safetensors",
    "scipy",
    "serving",
    "simplejpeg",
    "tensorrt",
]

_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBT/wAARCAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QA"
    "FQEBAQAAAAAAAAAAAAAAAAAABwj/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oADAMBAAIRAxEAPwCXgBdYD//Z"
)
"""16 x 16 pixels, RGB 200, 60, 30."""
CORE = ("msgspec", "psutil", "yaml", "jinja2", "httpx2", "tomli_w", "jaxtyping", "matplotlib")
SERVING = ("starlette", "uvicorn", "python_multipart")


def simplejpeg() -> Facts:
    """Decode a JPEG strictly."""
    import simplejpeg as decoder

    pixels = decoder.decode_jpeg(_JPEG, "RGB", strict=True)
    return _colour_of(pixels.shape, pixels[8, 8])


def pillow() -> Facts:
    """Decode a JPEG with Pillow."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(_JPEG)) as image:
        return _colour_of((*image.size, 3), image.convert("RGB").tobytes()[:3])


def _colour_of(shape: tuple[int, ...], colour: Iterable[int]) -> Facts:
    red, green, blue = (int(value) for value in colour)
    if tuple(shape) != (16, 16, 3) or abs(red - 200) + abs(green - 60) + abs(blue - 30) > 20:
        raise ValueError(f"the decoded picture is wrong: {tuple(shape)}, colour {red}, {green}, {blue}")
    return {"shape": list(shape)}


def scipy() -> Facts:
    """Assign rows to columns."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.array([[4.0, 1.0], [2.0, 8.0]]))
    if [*rows.tolist(), *columns.tolist()] != [0, 1, 1, 0]:
        raise ValueError(f"linear_sum_assignment gave {columns.tolist()} instead of [1, 0]")
    return {}


def safetensors() -> Facts:
    """Write and read a tensor file in memory."""
    import numpy as np
    from safetensors.numpy import load, save

    if load(save({"a": np.arange(3)}))["a"].tolist() != [0, 1, 2]:
        raise ValueError("safetensors gave other numbers back")
    return {}


def hotcoco() -> Facts:
    """Import the evaluator's compiled part."""
    return {"version": getattr(import_module("hotcoco"), "__version__", "")}


def core_imports() -> Facts:
    """Import the rest of what we need, and say what is missing."""
    missing = []
    for module in CORE:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            missing.append(module)
    return {"missing": missing}


def coco_api() -> Facts:
    """Encode a mask and evaluate one box with pycocotools, which shows old code under a new NumPy."""
    if find_spec("pycocotools") is None:
        return {"is_there": False}
    import numpy as np
    import pycocotools._mask  # type: ignore[import-untyped, unused-ignore]
    from pycocotools import mask  # type: ignore[import-untyped, unused-ignore]
    from pycocotools.coco import COCO  # type: ignore[import-untyped, unused-ignore]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped, unused-ignore]

    area = mask.area(mask.encode(np.asfortranarray(np.ones((4, 5), dtype=np.uint8))))
    if int(area) != 20:
        raise ValueError(f"a mask of 20 pixels has an area of {int(area)}")
    truth = COCO()
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    truth.dataset = {"info": {}, "images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [box]}
    truth.createIndex()
    found = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    if abs(float(evaluation.stats[0]) - 1.0) > 1e-6:
        raise ValueError(f"a box that was found has an AP of {float(evaluation.stats[0])}")
    return {"is_there": True, "path": pycocotools._mask.__file__}


def opencv() -> Facts:
    """Import OpenCV, where it is installed."""
    return _optional("cv2")


def onnx() -> Facts:
    """Import onnx, where it is installed."""
    return _optional("onnx")


def onnxruntime() -> Facts:
    """Import ONNX Runtime, where it is installed, and ask for its devices."""
    facts = _optional("onnxruntime")
    if facts["is_there"]:
        facts["providers"] = import_module("onnxruntime").get_available_providers()
    return facts


def openvino() -> Facts:
    """Import OpenVINO, where it is installed."""
    return _optional("openvino")


def tensorrt() -> Facts:
    """Import TensorRT, where it is installed, which loads its libraries."""
    return _optional("tensorrt")


def av() -> Facts:
    """Import PyAV, where it is installed, and look for the codec that most videos have."""
    facts = _optional("av")
    if facts["is_there"]:
        import_module("av").codec.Codec("h264", "r")
    return facts


def serving() -> Facts:
    """Import what a server needs, where it is installed."""
    found = [_optional(module)["is_there"] for module in SERVING]
    return {"is_there": all(found)}


def _optional(module: str) -> Facts:
    if find_spec(module) is None:
        return {"is_there": False}
    return {"is_there": True, "version": str(getattr(import_module(module), "__version__", ""))}
