"""Steering: trains the directions of concepts, and adds steering vectors to the activations."""
