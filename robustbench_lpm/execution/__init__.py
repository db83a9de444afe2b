"""How runs are carried out and survive: blocks, journals, processes, records of what was computed."""
