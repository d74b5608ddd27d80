"""Versions, ranges and conditions are read as PEP 440 and PEP 508 say."""

from importlib.metadata import distributions

import pytest

from detronome.doctor.versions import Requirement, Version, allows, normal_name

MARKER = {"python_version": "3.11", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}


def parsed(text: str) -> Version:
    version = Version.parse(text)
    assert version is not None
    return version


def test_versions_are_in_order() -> None:
    texts = ["1.0.dev1", "1.0a1", "1.0b2", "1.0rc1", "1.0", "1.0.post1", "1.0.1", "1.1.dev0", "1.1", "1.10", "2!0.1"]
    assert sorted(texts, key=parsed) == texts
    assert parsed("1.0") == parsed("1") == parsed("v1.0.0+cu130")
    assert parsed("2.15.0+cu130").local == "cu130"
    assert [Version.parse(text) for text in ("", "abc", "1.0-what-ever")] == [None] * 3


@pytest.mark.parametrize(
    ("specifier", "version", "is_allowed"),
    [
        ("", "1.0", True),
        (">=2.11", "2.11.0+cu130", True),
        (">=2.11", "2.9.1", False),
        (">=1.3,<2", "1.10", True),
        (">=1.3,<2", "2.0", False),
        ("<2", "2.0rc1", False),
        ("<2.0rc2", "2.0rc1", True),
        ("!=2.6.2,!=2.6.3", "2.6.3", False),
        ("==2.9.1", "2.9.1+cpu", True),
        ("==2.9.1+cu126", "2.9.1+cpu", False),
        ("==8.3.*", "8.3.46", True),
        ("!=8.3.*,>=5.3.0", "8.30", True),
        ("~=3.9.0", "3.9.4", True),
        ("~=3.9.0", "3.10", False),
        ("~=3.9", "3.10", True),
        ("<=1.0", "1.0.post1", False),
        (">=1", "not a version", True),
    ],
)
def test_ranges(specifier: str, version: str, is_allowed: bool) -> None:
    assert allows(specifier, version) == is_allowed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy", ("numpy", "", "")),
        ("torch (>=2.14.0)", ("torch", ">=2.14.0", "")),
        ("fsspec>=2024.2; extra == 'cloud'", ("fsspec", ">=2024.2", "cloud")),
        ('cuda-toolkit[cublas,cudart]==13.2.2; platform_system == "Linux"', ("cuda-toolkit", "==13.2.2", "")),
        ("triton~=3.9.0; platform_system == 'Linux' and python_version < '3.16'", ("triton", "~=3.9.0", "")),
        ("tomli; python_version < '3.11'", None),
        ("pywin32; sys_platform == 'win32' or platform_machine in 'arm64'", None),
        ("a; (python_version >= '3.9' and sys_platform != 'win32') and extra == 'x'", ("a", "", "x")),
        ("b; 'linux' not in sys_platform", None),
        ("c @ https://example.org/c.zip", ("c", "", "")),
        ("d; what_is_this == '1'", None),
        ("e; python_version <", None),
    ],
)
def test_requirements(line: str, expected: tuple[str, str, str] | None) -> None:
    found = Requirement.parse(line, MARKER)
    assert (None if found is None else (found.name, found.specifier, found.extra)) == expected


def test_names_are_compared_as_indexes_do() -> None:
    assert normal_name("Nvidia_ML.py") == "nvidia-ml-py"


def test_it_agrees_with_packaging_on_all_that_is_installed() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    environment = pytest.importorskip("packaging.markers").default_environment()
    versions = {normal_name(d.metadata["Name"]): d.version for d in distributions()}
    compared = 0
    for distribution in distributions():
        for line in distribution.requires or ():
            theirs = packaging.Requirement(line)
            found = Requirement.parse(line, environment)
            holds = theirs.marker is None or theirs.marker.evaluate({"extra": found.extra if found else ""})
            if found is None:
                assert not holds, line
                continue
            assert holds and found.name == normal_name(theirs.name), line
            if found.name in versions:
                version = versions[found.name]
                assert allows(found.specifier, version) == theirs.specifier.contains(version, prereleases=True), line
                compared += 1
    assert compared > 100
