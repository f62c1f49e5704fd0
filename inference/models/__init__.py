"""Models: where weights come from, how they load, and the transformers model as the engine calls it."""
