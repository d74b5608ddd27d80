"""`detronome data ...`: everything about data sets. None of these commands imports torch."""

from __future__ import annotations

from cyclopts import App

__all__ = ["app"]

app = App(name="data", help="Download, check, convert, look at and prepare data sets.", help_epilogue="")
app.command("detronome.cli.data.download:download", name="download", help="Fetch and verify COCO 2017, resumable.")
app.command("detronome.cli.data.check:check", name="check", help="Find everything that is wrong, with ids and fixes.")
app.command("detronome.cli.data.convert:convert", name="convert", help="From and to COCO, YOLO, VOC and Roboflow.")
app.command("detronome.cli.data.shard:shard", name="shard", help="Write tar shards with an index, or verify them.")
app.command("detronome.cli.data.stats:stats", name="stats", help="Classes, crowding and sizes, with pictures.")
app.command("detronome.cli.data.index:index", name="index", help="Compile the annotations now.")
app.command("detronome.cli.data.cache:cache", name="cache", help="What lies in the cache; clear it.")
