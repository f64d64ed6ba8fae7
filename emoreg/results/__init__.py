"""What was found: records, a study read back, statistics, confirmation, status. Needs neither torch nor Ray."""
