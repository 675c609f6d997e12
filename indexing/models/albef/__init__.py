"""ALBEF (Li et al., NeurIPS 2021): picture, text and fusion encoder, small and in our own code.

config.py    sizes
vision.py    the picture encoder
bert.py      the blocks of the text and the fusion encoder
network.py   all of it, with the names that the public checkpoints use
reading.py   texts through the blocks, with or without token pruning (MML-TP)
weights.py   the checkpoints of ALBEF and LAVIS, and folders
tokenizer.py titles to word pieces
encoder.py   the `Encoder` that index, search and train use
"""
