"""Methods: how the FFN sites of a backbone are converted, a folder each.

`<name>/options.py` says what may be set and what is true of the method (torch-free),
`<name>/layers.py` builds its MoE layers.
"""
