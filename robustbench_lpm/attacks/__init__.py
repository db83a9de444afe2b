"""Attacks: functions in the words of their papers, and adapters to other libraries' versions of them.

Each takes an oracle (`contract.Oracle`), images and labels, and returns images. None of them grades anything.
"""
