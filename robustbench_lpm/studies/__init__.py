"""Clean accuracy as one thing varies: glimpses and averaged runs, or what is done to the image."""
