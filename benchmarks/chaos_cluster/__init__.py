"""Sends load to a cluster while its processes and nodes are killed: is an answer lost or wrong?"""
