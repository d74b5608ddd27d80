"""`detronome data shard`."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from detronome.cli.options import DATA_GROUP, Json
from detronome.cli.progress import show_progress
from detronome.cli.render import print_json, print_line, print_notice
from detronome.errors import ConfigError, first_few
from detronome.report.formats import format_bytes

__all__ = ["shard"]


def shard(
    data: str | None = None,
    out: str | None = None,
    /,
    *,
    split: Annotated[list[str] | None, DATA_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    shard_mib: int = 256,
    verify: str | None = None,
    json: Json = False,
) -> int:
    """Write a data folder as tar shards with an index, for data larger than a disk and for slow or remote storage.

    Parameters
    ----------
    data
        Data folder.
    out
        Folder that does not exist or is empty, or an address such as s3://bucket/data; trains like a data folder.
    split
        Splits to write, or to verify; all by default.
    shard_mib
        Size of a shard in MiB.
    verify
        Instead of writing, read the shards in this folder or at this address and name every damaged image.
    """
    from detronome import api

    if verify is not None:
        if data is not None:
            raise ConfigError(
                "--verify stands alone", where="detronome data shard", fix="detronome data shard --verify OUT"
            )
        with show_progress(is_bytes=True) as show:
            check = api.verify_shards(verify, splits=split, on_progress=partial(show, "verifying"))
        if json:
            print_json(check.to_json())
            return 1 if check.damaged else 0
        check.raise_if_damaged()
        print_line(f"whole: {_counted(check.num_images, 'image')} in {_counted(check.num_shards, 'shard')}")
        return 0
    if data is None or out is None:
        raise ConfigError(
            "a data folder and an output are needed", where="detronome data shard", fix="detronome data shard DATA OUT"
        )
    with show_progress(is_bytes=True) as show:
        result = api.shard_data(data, out, splits=split, shard_mib=shard_mib, on_progress=partial(show, "writing"))
    if json:
        print_json(result.to_json())
        return 0
    for part in result.splits:
        counts = f"{_counted(part.num_images, 'image')} in {_counted(part.num_shards, 'shard')}"
        print_line(f"{part.split}: {counts}, {format_bytes(part.size_bytes)}")
        if part.suspicious:
            named = first_few(part.suspicious)
            print_notice(f"{part.split}: {_counted(len(part.suspicious), 'file')} not like an image: {named}")
            print_notice(f"packed as they are; find out with: detronome data check {shlex.quote(data)}")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
