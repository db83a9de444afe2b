"""lpmbench: how accurate an image classifier stays under attack, above all a stochastic one that looks in glimpses."""

__version__ = "0.1.0"
