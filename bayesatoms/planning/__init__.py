"""Planning: what a study can tell before it is run, and what to image next."""
