"""Phases: what a configuration looks like (observables), and over composition and temperature (diagram)."""
