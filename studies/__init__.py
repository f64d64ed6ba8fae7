"""The studies that emoreg ships, one a file: ``study() -> StudyConfig``."""
