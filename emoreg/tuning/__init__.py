"""A study on Ray Tune and Optuna."""
