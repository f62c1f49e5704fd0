"""The parts of the sampler: operations on logits, parameters of a step, penalties, log probabilities."""
