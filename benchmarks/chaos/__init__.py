"""Load while things break: is anything lost, is anything wrong?"""
