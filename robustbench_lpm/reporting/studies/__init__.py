"""The studies, as tables for the terminal and as figures; each module shows one and runs nothing.

A table has columns accuracy, accuracy_low and accuracy_high in [0, 1] (for glimpses: clean_accuracy, ...), and a row
for each M ("mc") and value of what else was varied. That of certify has a row for each image.
"""
