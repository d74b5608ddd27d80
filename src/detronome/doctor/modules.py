"""What to install for a module that is missing; for one that nobody here knows, nothing: its name may be a trap."""

from __future__ import annotations

from detronome.doctor.probes.installed import MODULES

__all__ = ["PACKAGES", "package_for"]

PACKAGES = {
    **MODULES,
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "tomli_w": "tomli-w",
    "google.protobuf": "protobuf",
    "tensorboard": "detronome[tensorboard]",
    "wandb": "detronome[wandb]",
    "mlflow": "detronome[mlflow]",
    "optuna": "detronome[search]",
    "starlette": "detronome[serve]",
    "uvicorn": "detronome[serve]",
    "uvloop": "detronome[serve]",
    "httptools": "detronome[serve]",
    "python_multipart": "detronome[serve]",
    "multipart": "python-multipart",
    "timm": "detronome[timm]",
    "supervision": "detronome[supervision]",
    "fsspec": "detronome[cloud]",
    "onnx": "detronome[onnx]",
    "onnxscript": "detronome[onnx]",
    "onnxruntime": "detronome[onnx]",
    "openvino": "detronome[openvino]",
    "nncf": "detronome[int8]",
    "tensorrt": "detronome[tensorrt]",
    "av": "detronome[video]",
}
"""By module, with our extra where we have one."""


def package_for(module: str) -> str:
    """Return what to install for a module, or for one within it; empty where it is not known."""
    first, _, rest = module.partition(".")
    return PACKAGES.get(f"{first}.{rest.partition('.')[0]}") or PACKAGES.get(first, "")
