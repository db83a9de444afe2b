"""Attacks, written as in their papers, and adapters to the attacks of other libraries.

Each takes an oracle (`contract.Oracle`), images and labels, and returns images. None of them grades anything.
"""
