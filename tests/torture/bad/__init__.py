"""Bad inputs, a module per kind: options, data, models, what is kept of runs, reports.

Each module has `cases()`; `tests.torture.inputs` carries them out.
"""
