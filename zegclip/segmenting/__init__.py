"""Segmenting picture files: the work of `zegclip segment`, which several processes share."""
