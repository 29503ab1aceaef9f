"""Quantised checkpoints as the ecosystem has them: one file per layout, and what folders of all layouts share."""
