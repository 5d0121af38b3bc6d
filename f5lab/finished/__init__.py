"""Runs that are over: read, indexed, compared, redacted, packed and shared."""
