"""The picture world: drawn scenes with exact masks and captions, and a tiny CLIP that learns from the captions.

`drawing.draw_scene` draws one scene, `dataset.load_picture_world` returns many as a data set with disjoint splits,
`dataset.export_picture_world` writes them to a folder, and `pretrain` trains the tiny CLIP of the embedded model.
"""
