"""Probes: functions without arguments that run in a child process, try something for real, and return plain data.

They import what they try inside the function, so that one module of them can be loaded where packages are missing.
"""
