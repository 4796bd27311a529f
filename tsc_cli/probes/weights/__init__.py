"""Probes: what a model's weights hold that a delta could save.  One idea a file:

`shards` and `gguf_file` find tensors in checkpoint files, `matrices` reads rows of them, `layouts`
knows what tensors are called, `stacks` puts the layers of a model side by side, `ratios`, `ranks`
and `coding` measure, `weights` is the whole of `tsc probe-weights`, `figure` draws it. No model is
built and no torch is imported.
"""
