"""Intervals, equivalence tests, calibration: numpy and scipy only."""
