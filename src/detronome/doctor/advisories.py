"""Releases that should not be used: security holes, malware, known breakage. Checked in November 2026."""

from __future__ import annotations

from dataclasses import dataclass

from detronome.doctor.findings import Severity

__all__ = ["ADVISORIES", "TWINS", "Advisory", "Twins"]


@dataclass(frozen=True, kw_only=True)
class Advisory:
    """A range of versions and what is wrong with it."""

    package: str
    affected: str
    """Range of versions, e.g. `<2.10`."""
    what: str
    good: str
    """What to install instead, as a range; empty where the package is to be removed."""
    source: str
    severity: Severity = Severity.WARNING


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Distributions that bring the same files or the same module name."""

    packages: tuple[str, ...]
    what: str
    keep: str


_STOLEN = "this release was published by an attacker: importing it steals credentials"

ADVISORIES = (
    Advisory(
        package="torch",
        affected="<2.6",
        what="opening a checkpoint can run its code, even with weights_only=True",
        good=">=2.11",
        source="CVE-2025-32434",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="torch",
        affected=">=2.6,<2.10",
        what="opening a checkpoint can corrupt memory, even with weights_only=True",
        good=">=2.11",
        source="CVE-2026-24747",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="onnx",
        affected="<1.21",
        what="loading a model can read files outside its folder",
        good=">=1.21",
        source="CVE-2026-27489, CVE-2026-34446, CVE-2026-34447",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="lightning",
        affected=">=2.6.2,<2.6.4",
        what=_STOLEN,
        good=">=2.6.6",
        source="GHSA-w37p-236h-pfx3; change the passwords and keys that this machine holds",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="pytorch-lightning",
        affected=">=2.6.2,<2.6.4",
        what=_STOLEN,
        good=">=2.6.6",
        source="GHSA-w37p-236h-pfx3; change the passwords and keys that this machine holds",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="ultralytics",
        affected=">=8.3.41,<8.3.43",
        what="this release was published by an attacker: it mines cryptocurrency",
        good=">=8.3.47",
        source="releases 8.3.41 and 8.3.42, December 2024",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="ultralytics",
        affected=">=8.3.45,<8.3.47",
        what="this release was published by an attacker: it mines cryptocurrency",
        good=">=8.3.47",
        source="releases 8.3.45 and 8.3.46, December 2024",
        severity=Severity.FAILURE,
    ),
    Advisory(
        package="pillow",
        affected="<12.3",
        what="damaged images can crash it or run code",
        good=">=12.3",
        source="CVE-2026-25990, PYSEC-2026-2253 to 2257",
    ),
    Advisory(
        package="picklescan",
        affected="<0.0.31",
        what="checkpoints with code in them can pass as harmless",
        good=">=0.0.31",
        source="CVE-2025-10155, CVE-2025-10156, CVE-2025-10157",
    ),
    Advisory(
        package="starlette",
        affected="<1.3.1",
        what="one request can keep a server busy: limits of forms are passed by, ranges of files are merged slowly",
        good=">=1.3.1",
        source="CVE-2026-54283, CVE-2025-62727",
    ),
    Advisory(
        package="python-multipart",
        affected="<0.0.31",
        what="one request can keep a server busy or fill its memory",
        good=">=0.0.31",
        source="CVE-2026-53539, CVE-2026-42561, GHSA-v9pg-7xvm-68hf",
    ),
    Advisory(
        package="jinja2",
        affected="<3.1.6",
        what="a template can leave its sandbox",
        good=">=3.1.6",
        source="CVE-2025-27516",
    ),
    Advisory(
        package="imgaug",
        affected=">=0",
        what="it has had no release since 2020 and fails under NumPy 1.24 and later (np.bool)",
        good="",
        source="imgaug 0.4.0, aleju/imgaug#829",
    ),
)

TWINS = (
    Twins(
        packages=(
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
        what="they write the same folder cv2: what is imported is a mixture of both",
        keep="opencv-python-headless",
    ),
    Twins(
        packages=("pynvml", "nvidia-ml-py"),
        what="both bring the module pynvml; the package pynvml is deprecated, and its old releases break nvidia-ml-py",
        keep="nvidia-ml-py",
    ),
    Twins(
        packages=("pycocotools", "pycocotools-fix", "pycocotools-windows", "mmpycocotools", "xtcocotools"),
        what="several copies of the COCO API, of which the others are no longer kept up",
        keep="pycocotools",
    ),
    Twins(
        packages=("pillow", "pillow-simd", "pil"),
        what="both write the folder PIL: what is imported is a mixture of both",
        keep="pillow",
    ),
    Twins(
        packages=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
        what="they write the same folder onnxruntime: the last one installed hides the others' providers",
        keep="",
    ),
)
