"""Compares published models on one data set: figures, their intervals, and which differences the data show."""
