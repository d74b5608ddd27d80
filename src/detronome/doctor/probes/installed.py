"""What is installed, read from metadata: nothing is imported."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from detronome.doctor.findings import Facts
from detronome.doctor.versions import normal_name

__all__ = ["MODULES", "packages", "python"]

MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "safetensors": "safetensors",
    "hotcoco": "hotcoco",
    "msgspec": "msgspec",
    "jaxtyping": "jaxtyping",
    "cyclopts": "cyclopts",
    "rich": "rich",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "yaml": "pyyaml",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "httpx2": "httpx2",
    "pycocotools": "pycocotools",
    "cv2": "opencv-python",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "nncf": "nncf",
    "tensorrt": "tensorrt",
    "av": "av",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "transformers": "transformers",
    "timm": "timm",
    "supervision": "supervision",
    "detronome": "detronome",
}
"""Modules by name, with the distribution that brings each."""


def python() -> Facts:
    """The interpreter and the system under it."""
    return {
        "version": platform.python_version(),
        "release": list(sys.version_info[:3]),
        "is_final": sys.version_info.releaselevel == "final",
        "implementation": platform.python_implementation(),
        "is_64_bit": sys.maxsize > 2**32,
        "is_free_threaded": not getattr(sys, "_is_gil_enabled", lambda: True)(),
        "executable": sys.executable,
        "is_virtual": sys.prefix != sys.base_prefix,
        "libc": list(platform.libc_ver()),
        "system": platform.system(),
        "platform": platform.platform(),
        "marker": {
            "python_version": ".".join(map(str, sys.version_info[:2])),
            "python_full_version": platform.python_version(),
            "os_name": os.name,
            "sys_platform": sys.platform,
            "platform_machine": platform.machine(),
            "platform_system": platform.system(),
            "platform_release": platform.release(),
            "platform_version": platform.version(),
            "platform_python_implementation": platform.python_implementation(),
            "implementation_name": sys.implementation.name,
            "implementation_version": platform.python_version(),
        },
    }


def packages() -> Facts:
    """Distributions with version, place and requirements; those whose metadata cannot be read, with its folder; files
    that stand in the way of a package."""
    found: dict[str, dict[str, object]] = {}
    twice: dict[str, list[str]] = {}
    damaged: dict[str, str] = {}
    for distribution in distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
            place, requires = str(distribution.locate_file("")), distribution.requires or []
        except Exception:  # half a folder
            name, version, place, requires = "", "", "", []
        if not name or not version:
            # Only a folder of metadata may be named: the fix removes it.
            path = Path(getattr(distribution, "_path", ""))
            if path.suffix in (".dist-info", ".egg-info"):
                damaged[normal_name(name or path.name.split("-")[0])] = str(path)
            continue
        key = normal_name(name)
        if key not in found:
            entry = {"version": version, "place": place, "requires": requires}
            found[key] = {**entry, "is_editable": _is_editable(distribution)}
        elif found[key]["place"] == place and found[key]["version"] != version:
            twice.setdefault(key, [str(found[key]["version"])]).append(version)
    return {
        "packages": found,
        "twice": twice,
        "damaged": damaged,
        "leftovers": _leftovers(),
        "origins": {module: origin for module in MODULES if (origin := _origin(module))},
        "shadows": _shadows(),
    }


def _is_editable(distribution: Distribution) -> bool:
    """Return whether a package is imported from the folder where it is written (PEP 610)."""
    with suppress(Exception):  # another tool wrote it
        return bool(json.loads(distribution.read_text("direct_url.json") or "{}")["dir_info"]["editable"])
    return False


def _leftovers() -> list[str]:
    """Return what an interrupted pip has left: folders that begin with `~`."""
    return sorted(
        str(item)
        for folder in dict.fromkeys(sys.path)
        if folder and Path(folder).name in ("site-packages", "dist-packages") and Path(folder).is_dir()
        for item in Path(folder).glob("~*")
    )


def _origin(module: str) -> str:
    """Return the file or folder that an import of a module would take."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return ""
    if spec is None:
        return ""
    places = list(spec.submodule_search_locations or ())
    return spec.origin or (places[0] if places else "")


def _shadows() -> list[dict[str, str]]:
    """Return modules of the working folder that an import there would take instead of the installed ones."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it was removed, as the probe of the disks tells
        return []
    if any(Path(place).resolve() == folder.resolve() for place in sys.path if place):
        return []  # it is searched in any case: what lies there is meant
    found = []
    for module in MODULES:
        spec = PathFinder.find_spec(module, [str(folder)])
        if spec is not None and spec.origin is not None:
            found.append(
                {
                    "module": module,
                    "path": str(Path(spec.origin).parent if spec.submodule_search_locations else spec.origin),
                }
            )
    for file in sorted(folder.glob("*.py")):
        if file.stem in sys.stdlib_module_names:
            found.append({"module": file.stem, "path": str(file)})
    return found
