"""Training of ALBEF (Li et al., NeurIPS 2021), with or without token pruning.

config.py   settings
presets.py  the recipes, and the pruning that they start from
momentum.py the slow copy of the model and the queue of its embeddings
losses.py   the three losses: contrastive (ITC), matching (ITM), hidden words (MLM)
step.py     a batch through all of it
train.py    setting up and training
"""
