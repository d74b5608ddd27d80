"""YOLO folders, as Ultralytics and Roboflow write them: an image list or folder for each split, a text file for each image.

    data.yaml                    path, train, val, test (a folder, a list file, or several), names (a list or 0: name)
    images/<split>/a.jpg         labels/<split>/a.txt
    <split>/images/a.jpg         <split>/labels/a.txt        Roboflow's export
    classes.txt                  one name a line, where there is no data.yaml; or obj.names

A line is `class cx cy w h`, 0-1 of the width and height of the upright picture; a line with more coordinates is a
polygon, and the box is its bounds. An empty label file, or none, is an image without objects. Category ids are the class
indices, so they count from 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import yaml

from detronome.data.formats.document import Record
from detronome.data.formats.images import is_image_name, list_images, to_stored, to_upright
from detronome.data.formats.labels import (
    Frame,
    LabelCodec,
    LabelFile,
    LabelFolder,
    LabelledImage,
    LabelObject,
    LabelSplit,
)
from detronome.data.formats.problems import LabelProblems
from detronome.errors import DataError

__all__ = ["YoloCodec", "YoloFolder", "find_yolo", "label_path", "yolo_yaml"]

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split that each key of data.yaml stands for."""
_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels.txt", "labels/classes.txt")
_PIXEL_LIMIT = 2.0
"""Normalised coordinates of boxes that reach far beyond the border stay below it; pixels do not."""
_FLAT_SPLIT = "train"
