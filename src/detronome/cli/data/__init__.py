"""`detronome data ...`: everything about data sets. None of these commands imports torch."""

from __future__ import annotations

from cyclopts import App, Group

from detronome.cli.help import epilogue

__all__ = ["app"]

app = App(
    name="data",
    help="Download, check, convert, look at and prepare data sets.",
    group_parameters=Group("Options", sort_key=1),
    help_epilogue=epilogue(
        ("Is anything wrong with it", "detronome data check DATA"),
        ("What is in it", "detronome data stats DATA"),
        ("What a command can do", "detronome data check --help"),
    ),
)
app.command(
    "detronome.cli.data.download:download",
    name="download",
    sort_key=1,
    help="Fetch and verify COCO 2017, resumable.",
    help_epilogue=epilogue(
        ("All of it; the same command goes on where it stopped", "detronome data download coco2017 coco"),
        ("The validation images and the annotations", "detronome data download coco2017 coco --parts val annotations"),
    ),
)
app.command(
    "detronome.cli.data.check:check",
    name="check",
    sort_key=2,
    help="Find everything that is wrong, with ids and fixes.",
    help_epilogue=epilogue(
        ("All splits, images decoded", "detronome data check DATA"),
        ("Annotations alone, every case named", "detronome data check instances_train.json --all"),
        ("Write repaired annotations beside yours", "detronome data check DATA --fix repaired"),
        ("In continuous integration", "detronome data check DATA --strict --json > check.json"),
        notes="Exit codes: 0 nothing is wrong, 1 there are errors (with --strict also warnings).",
    ),
)
app.command(
    "detronome.cli.data.stats:stats",
    name="stats",
    sort_key=3,
    help="Classes, crowding and sizes, with pictures.",
    help_epilogue=epilogue(
        ("Tables", "detronome data stats DATA"),
        ("Every class, and pictures", "detronome data stats DATA --all-classes --out pictures"),
    ),
)
app.command(
    "detronome.cli.data.convert:convert",
    name="convert",
    sort_key=4,
    help="From and to COCO, YOLO, VOC and Roboflow.",
    help_epilogue=epilogue(
        ("To YOLO, images linked", "detronome data convert DATA OUT --to yolo"),
        ("One split to COCO, images copied", "detronome data convert DATA OUT --to coco --split val --images copy"),
    ),
)
app.command(
    "detronome.cli.data.shard:shard",
    name="shard",
    sort_key=5,
    help="Write tar shards with an index, or verify them.",
    help_epilogue=epilogue(
        ("To a folder; train takes it like the data", "detronome data shard DATA OUT"),
        ("To a bucket, the training split alone", "detronome data shard DATA s3://bucket/data --split train"),
        ("Read them again, and name every damaged image", "detronome data shard --verify OUT"),
        notes="Exit codes of --verify: 0 all are whole, 1 some are damaged.",
    ),
)
app.command(
    "detronome.cli.data.index:index",
    name="index",
    sort_key=6,
    help="Compile the annotations now.",
    help_epilogue=epilogue(
        ("All splits", "detronome data index DATA"),
        ("One file", "detronome data index instances_train.json"),
    ),
)
app.command(
    "detronome.cli.data.cache:cache",
    name="cache",
    sort_key=7,
    help="What lies in the cache; clear it.",
    help_epilogue=epilogue(
        ("A line for each kind", "detronome data cache"),
        ("Remove what is a month old", "detronome data cache --clear --older-than 30"),
    ),
)
