"""An optional C++ kernel for inference on a CPU, built by `python -m moe_runner.kernels build`."""
