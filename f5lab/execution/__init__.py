"""Executing notebooks headlessly and turning them into pages that need no network."""
