"""The records of a COCO file, as far as they are read, for decoding with types."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["CocoCategory", "CocoImage", "WholeNumber"]

WholeNumber = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What a column of ids can hold."""
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class CocoImage(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: WholeNumber
    file_name: Annotated[str, msgspec.Meta(min_length=1)]
    height: _Pixels
    width: _Pixels


class CocoCategory(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: WholeNumber
    name: str
