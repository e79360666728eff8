"""The stages of the experiments, one file each; each can be interrupted and continued."""
