"""Accuracy as one thing varies: glimpses and averaged runs, what is done to the image, or eps."""
