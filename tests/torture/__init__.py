"""Campaigns against the program: kills, bad inputs, crowds, failing disks, little memory.

`make torture` carries out all of them, about an hour and a half on two cores; `python -m
tests.torture kills` one of them. Figures go to outputs/torture and, by hand, into
docs/reliability.md.
"""
