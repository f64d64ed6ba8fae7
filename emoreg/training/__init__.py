"""One trial: pre-train, regulate, measure. Knows neither Ray nor Optuna."""
