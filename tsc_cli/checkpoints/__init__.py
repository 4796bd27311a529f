"""The files of a model, read without transformers: configs, tensors and where they lie."""
