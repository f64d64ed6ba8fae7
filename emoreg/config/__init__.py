"""What a study is: frozen, typed, validated once. Every default of emoreg lives here and only here."""

from emoreg.config.confirmation import ConfirmationConfig
from emoreg.config.controls import Control, control, control_named, in_order
from emoreg.config.distributions import Choice, Distribution, Float, Int, When
from emoreg.config.image_sets import ImageSetConfig
from emoreg.config.paths import Value, leaves, read_path, replace_paths
from emoreg.config.registry import BACKBONES, CONTROLS, IMAGE_SETS, METRICS, PROBES, Registry, registries
from emoreg.config.resolved import Fingerprints, ResolvedTrial, resolve_trial
from emoreg.config.resources import BudgetConfig, ResourcesConfig, TrialResources
from emoreg.config.secrets import SECRETS, is_percent_encoded, shown_url, without_secrets
from emoreg.config.serialization import from_json, to_json
from emoreg.config.study import (
    CONFIRM,
    STORAGE,
    ExperienceConfig,
    Objective,
    SamplerConfig,
    SchedulerConfig,
    StudyConfig,
)
from emoreg.config.trial import (
    AugmentationConfig,
    OptimizerConfig,
    PretrainingConfig,
    RegulationConfig,
    TrialConfig,
)
from emoreg.config.validation import require

__all__ = [
    "BACKBONES", "CONFIRM", "CONTROLS", "IMAGE_SETS", "METRICS", "PROBES", "SECRETS", "STORAGE",
    "AugmentationConfig", "BudgetConfig", "Choice", "ConfirmationConfig", "Control", "Distribution", "ExperienceConfig",
    "Fingerprints", "Float", "ImageSetConfig", "Int", "Objective", "OptimizerConfig", "PretrainingConfig", "Registry",
    "RegulationConfig",
    "ResolvedTrial", "ResourcesConfig", "SamplerConfig", "SchedulerConfig", "StudyConfig", "TrialConfig", "TrialResources",
    "Value", "When", "control", "control_named", "from_json", "in_order", "is_percent_encoded", "leaves", "read_path",
    "registries", "replace_paths", "require", "resolve_trial", "shown_url", "to_json", "without_secrets",
]  # fmt: skip
