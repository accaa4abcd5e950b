"""`distil-jax benchmark`: the training step of any configuration, measured.

`plan` says what is measured; `run` has it measured by processes of `worker`, each of which takes the `step` of real or
made-up `inputs`; `report` tells what came out. Nothing is imported here: PyTorch's side of benchmarks/ needs `process`
of this package, and its memory is measured without JAX.
"""
