"""Pictures for people: overlays, samples, curves and contact sheets."""
