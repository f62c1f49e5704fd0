"""Sends load while faults are injected: is an answer lost or wrong?"""
