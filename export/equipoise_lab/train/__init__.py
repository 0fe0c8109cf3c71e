"""Trains a user's own network on the user's own labelled cases: a plain loop for networks with dropout."""
