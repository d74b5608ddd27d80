"""Verdicts on image files from earlier runs, so that a second look at an unchanged data set takes moments.

A file counts as unchanged while its name, size, time of change (both of the content and of the inode) and inode are
what they were. Whoever writes to a file changes at least one of them; a disk that loses bits by itself does not, and
only reading everything again notices that.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec
import PIL
import simplejpeg  # type: ignore[import-untyped, unused-ignore]

from detronome.data.check.image_verdict import Verdict
from detronome.data.store.cache_folder import cache_folders
from detronome.runtime.files import write_atomic

__all__ = ["ImageCache"]

_SCHEMA = 2
"""Raised whenever verdicts change their form or their rules."""
_KEY_BYTES = 16
_SOUND = Verdict()


class _File(msgspec.Struct):
    sound: bytes
    """The keys of images with nothing to say about them, one after the other."""
    others: dict[str, Verdict]


class ImageCache:
    """The verdicts on the images of one folder, as one annotation file describes them.

    Args:
        annotation_file: the COCO file.
        images_dir: its images.
        trust: whether verdicts of earlier runs count; new ones are kept in any case.
    """

    def __init__(self, annotation_file: Path, images_dir: Path, *, trust: bool = True) -> None:
        name = f"{_name_of(annotation_file, images_dir)}.msgpack"
        self._files = [folder / name for folder in cache_folders("checked")]
        self._known: dict[bytes, Verdict] = _load(self._files) if trust else {}
        self._seen: dict[bytes, Verdict] = {}

    def key(self, path: Path, expected_size_hw: tuple[int, int]) -> bytes:
        """Return what the verdict on a file depends on, as a digest; nothing for a file that cannot be found."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            return b""
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return _digest((str(path), expected_size_hw, status.st_size, times, status.st_ino, status.st_dev))

    def get(self, key: bytes) -> Verdict | None:
        """Return the verdict of an earlier run."""
        verdict = self._known.get(key)
        if verdict is not None:
            self._seen[key] = verdict
        return verdict

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keep a verdict; `save` writes it."""
        if key and verdict.defect != "unreadable":  # permissions and mounts change without a trace in the file
            self._seen[key] = verdict

    def save(self) -> None:
        """Write what this run saw; a cache folder that cannot be written costs only time."""
        sound = b"".join(key for key, verdict in self._seen.items() if verdict == _SOUND)
        others = {key.hex(): verdict for key, verdict in self._seen.items() if verdict != _SOUND}
        content = msgspec.msgpack.encode(_File(sound, others))
        for file in self._files:
            with suppress(OSError):
                write_atomic(file, content)
                return


def _load(files: list[Path]) -> dict[bytes, Verdict]:
    for path in files:
        try:
            file = msgspec.msgpack.decode(path.read_bytes(), type=_File)
            keys = (file.sound[i : i + _KEY_BYTES] for i in range(0, len(file.sound), _KEY_BYTES))
            return dict.fromkeys(keys, _SOUND) | {bytes.fromhex(key): value for key, value in file.others.items()}
        except (OSError, ValueError):  # none yet, or damaged: a cache can always be made again
            continue
    return {}


def _name_of(annotation_file: Path, images_dir: Path) -> str:
    decoders = (PIL.__version__, simplejpeg.__version__)
    return _digest((_SCHEMA, decoders, str(annotation_file.resolve()), str(images_dir.resolve()))).hex()


def _digest(identity: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(repr(identity).encode(errors="surrogateescape"), digest_size=_KEY_BYTES).digest()
