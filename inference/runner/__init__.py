"""Runs steps on the model: memory, loading checks, forward and sample, recovery. Schedules nothing."""
