"""Decoded images by position: from their source, or from the cache of what was decoded before."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from detronome.data.store.decode import decode_image
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.source import ImageSource
from detronome.runtime.clock import StageClock

__all__ = ["PixelReader"]


class PixelReader:
    """Reads and decodes the images of one split.

    Args:
        index: the split's annotations, which say how large each image must be.
        source: the encoded images.
        fast: decode with libjpeg-turbo's fast transform and upsampling.
    """

    def __init__(self, index: AnnotationIndex, source: ImageSource, *, fast: bool = False) -> None:
        self._index = index
        self._source = source
        self._fast = fast

    def where(self, i: int) -> str:
        """Return the place of image `i`: a path, or a shard and the member in it."""
        return self._source.where(i)

    def read(self, i: int, clock: StageClock) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of image `i`; times reading and decoding.

        Raises:
            DataError: the image is missing, damaged or of another size than annotated.
        """
        with clock.stage("read"):
            content = self._source.read(i)
        with clock.stage("decode"):
            return decode_image(content, self._source.where(i), self._index.image(i).size_hw, fast=self._fast)
