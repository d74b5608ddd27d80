"""Decoded images by position: from their source, or from the cache of what was decoded before."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8

from detronome.data.augment.cpu import resize
from detronome.data.store.cache import PixelCache
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
        fast: decode JPEGs with the fast transform and upsampling, and large ones at a fraction of their size.
        cache: keeps what was decoded.
        stored_hw: height and width to which images are reduced before anything else, whether they are then kept or
            not; None leaves them as they are.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        source: ImageSource,
        *,
        fast: bool = False,
        cache: PixelCache | None = None,
        stored_hw: Int32[np.ndarray, "I 2"] | None = None,
    ) -> None:
        self._index = index
        self._source = source
        self._fast = fast
        self._cache = cache
        self._stored_hw = stored_hw

    def where(self, i: int) -> str:
        """Return the place of image `i`: a path, or a shard and the member in it."""
        return self._source.where(i)

    def read(self, i: int, clock: StageClock, enough_hw: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of image `i`, an array of the caller's own; times reading, decoding and the cache.

        Args:
            i: position in the index.
            clock: is told the stages.
            enough_hw: height and width that are enough for what the caller is about to do with the image.

        Raises:
            DataError: the image is missing, damaged or of another size than annotated.
        """
        if self._cache is None:
            return self._decode(i, clock, enough_hw)
        with clock.stage("cache"):
            stamp = self._source.stamp(i)
            pixels = self._cache.get(i, stamp)
        if pixels is None:
            # What is kept serves every draw.
            pixels = self._decode(i, clock, None)
            with clock.stage("cache"):
                self._cache.put(i, pixels, stamp)
        return pixels

    def _decode(self, i: int, clock: StageClock, enough_hw: tuple[int, int] | None) -> UInt8[np.ndarray, "H W 3"]:
        stored_hw: tuple[int, int] | None = None if self._stored_hw is None else tuple(self._stored_hw[i].tolist())
        with clock.stage("read"):
            content = self._source.read(i)
        with clock.stage("decode"):
            pixels = decode_image(
                content,
                self._source.where(i),
                self._index.image(i).size_hw,
                fast=self._fast,
                enough_hw=stored_hw or enough_hw,
            )
            return pixels if stored_hw is None else resize(pixels, stored_hw)
