"""The container: records with checksums, written in order and read with bounds.  Bytes only, no
torch.
"""
