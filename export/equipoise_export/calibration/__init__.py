"""Choosing a policy on labelled calibration cases."""
