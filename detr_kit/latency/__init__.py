"""How long detectors take on this machine."""
