"""The command line: the only place that prints or knows exit codes."""
