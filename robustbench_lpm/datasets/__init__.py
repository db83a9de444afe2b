"""Where labelled images come from, in an order that never changes, and how they are shown to a model.

A dataset is a function `(*, data, split, folder, **parameters) -> ImageSet`, named by a card in datasets/.
"""
