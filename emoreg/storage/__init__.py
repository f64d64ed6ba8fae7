"""Bytes, wherever they lie: whole files here or in an object store, working copies, locks, checkpoints."""
