"""Learning rate schedules: functions of the step that return a factor of the peak learning rate. And what follows from them."""

from __future__ import annotations

import math

from emoreg.config.trial import PretrainingConfig, RegulationConfig


def pretraining_schedule(step: int, num_steps: int, config: PretrainingConfig) -> float:
    """Linear warm-up, then 1, which knows nothing of the total length, or a half cosine to 0, which does.

    In a cool-down the factor goes linearly to 0, from whatever it was before.
    """
    warmup, total = config.warmup_steps, config.total_epochs
    cooldown = num_steps * config.cooldown_epochs // total if total else 0
    if cooldown and step > num_steps - cooldown:
        branch = num_steps - cooldown
        return pretraining_schedule(branch, num_steps, config) * (num_steps - step) / cooldown
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.lr_schedule:
        case "constant":
            return 1.0
        case "cosine":
            return _half_cosine(step - warmup, num_steps - warmup)


def length_dependence(config: PretrainingConfig) -> str | None:
    """Why a longer pre-training cannot continue a shorter one, or None if it can: found out from the schedule itself."""
    if config.cooldown_epochs:
        return f"pretraining.cooldown_epochs={config.cooldown_epochs} are the last of the length, so lengths share no cool-down"
    shortest = config.warmup_steps + 100
    for step in sorted({*range(0, shortest, shortest // 20), shortest - 1}):
        short = pretraining_schedule(step, shortest, config)
        for longer in (shortest + 1, 2 * shortest, 16 * shortest):
            long = pretraining_schedule(step, longer, config)
            if short != long:
                return (
                    f"pretraining.lr_schedule={config.lr_schedule!r} depends on the total length (its factor at step {step} is "
                    f"{short:.6g} of {shortest} steps and {long:.6g} of {longer} steps), so lengths share no pre-training"
                )
    return None


def regulation_schedule(step: int, num_steps: int, config: RegulationConfig) -> float:
    """Linear warm-up, then a half cosine to 0, or constant with a linear end (warm-up-stable-decay)."""
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.lr_schedule:
        case "cosine":
            return _half_cosine(step - warmup, num_steps - warmup)
        case "warmup_stable_decay":
            decay = max(1, round(config.decay_fraction * num_steps))
            return min(1.0, (num_steps - step) / decay)


def balance_travel(config: RegulationConfig, num_steps: int) -> float:
    """How far AdamW can move the logit of a learned balance at most: by the learning rate in each step."""
    return config.balance_learning_rate * sum(regulation_schedule(step, num_steps, config) for step in range(num_steps))


def _half_cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / max(1, num_steps)))
