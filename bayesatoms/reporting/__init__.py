"""Reporting: one self-contained page about a run, and the papers it stands on."""
