"""Hyperparameter studies of emotional regulation in deep learning."""

__version__ = "0.1.0"
