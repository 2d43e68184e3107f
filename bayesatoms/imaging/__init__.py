"""Imaging: from a micrograph to a labelled lattice, and back."""
