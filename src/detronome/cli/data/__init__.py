"""`detronome data ...`: everything about data sets. None of these commands imports torch."""

from __future__ import annotations

from cyclopts import App

__all__ = ["app"]

app = App(name="data", help="Download, check, convert, look at and prepare data sets.")
app.command("detronome.cli.data.shard:shard", name="shard", help="Write tar shards with an index, or verify them.")
