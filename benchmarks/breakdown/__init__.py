"""Measures what each part of a step costs on a CPU, and what the processor could reach."""
