"""A trial as it is run: its control's meaning written into its settings, its image sets known by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emoreg.config import ImageSetConfig, TrialConfig, leaves

Source = tuple[str, str | None, str | None, int]
"""What an image set is read from: name, path, target, and the side in pixels that it is prepared at."""


def source_of(image_set: ImageSetConfig, image_size: int) -> Source:
    """The source of an image set: two sets of one source have the same images, and so one fingerprint."""
    return (image_set.name, image_set.path, image_set.target, image_size)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of the image sets that a study may use, by source. Sets that are not in here count by their source."""

    by_source: Mapping[Source, str]

    def of(self, image_set: ImageSetConfig, image_size: int) -> str | None:
        """The fingerprint of an image set; None where it is not known."""
        return self.by_source.get(source_of(image_set, image_size))


UNKNOWN = Fingerprints({})
"""No image set has been opened yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedTrial:
    """A trial as it is run.

    Attributes:
        config: with the control's meaning in its settings; ``config.control`` still names the control.
        identity: twelve hexadecimal digits of the SHA-256 of all that decides the trial's numbers, seed included.
    """

    config: TrialConfig
    identity: str

    @property
    def images_of_pretraining(self) -> ImageSetConfig | None:
        """The image set that stage 1 trains on; None for a trial that needs no pre-training."""
        if self.config.pretraining.epochs == 0 or not self.config.regulation.needs_emotional:
            return None
        return self.config.neutral if self.config.control == "neutral" else self.config.stimuli


def resolve_trial(config: TrialConfig, fingerprints: Fingerprints = UNKNOWN) -> ResolvedTrial:
    """Apply the control of ``config`` and compute the trial's identity. Resolving a resolved configuration changes nothing."""
    applied = config.applied()
    values: dict[str, Any] = dict(leaves(applied))
    for path, value in values.items():
        if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are one setting
            values[path] = int(value)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return ResolvedTrial(config=applied, identity=hashlib.sha256(text.encode()).hexdigest()[:12])
