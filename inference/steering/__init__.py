"""Steering: concepts, their directions, and how they get into the activations."""
