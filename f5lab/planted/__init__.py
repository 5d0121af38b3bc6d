"""Faults planted on purpose, harmless decoys, and how often the diagnosis is right about them (`calibration`)."""
