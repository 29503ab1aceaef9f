"""Fewer bits per weight: calibration, rounding, the checkpoints they are written to, and what it costs in quality."""
