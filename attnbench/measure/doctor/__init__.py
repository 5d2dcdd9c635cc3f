"""What would spoil a measurement on this machine, and the command that fixes it.

A check is a function that returns a `Finding`. None of them changes anything.
"""
