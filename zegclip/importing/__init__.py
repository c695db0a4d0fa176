"""Folders that annotation tools and old projects leave, turned into the one layout that the rest of zegclip reads."""

FORMATS = ("coco", "yolo", "voc", "ade20k", "cityscapes", "masks", "ids", "colours", "binary", "class-masks")
"""How a source may be annotated. `masks`: one mask per picture, of whatever kind the masks prove."""
