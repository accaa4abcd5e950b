"""Training: one step, one loop and one specification of a run for `pretrain`, `distill` and `finetune`.

The package has no names of its own: each module is imported by name, so that a command that trains nothing waits for
neither Orbax nor grain, and `distill.distill` is not mistaken for its module.
"""
