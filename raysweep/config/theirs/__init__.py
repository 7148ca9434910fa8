"""Hyper-parameter files of other programs, read as they are: EasyEdit's and SimIE's YAML, MEMIT's and AlphaEdit's JSON.

Each of their keys becomes one of ours, or has the only value that is ever used here, or changes no number (and is said to), or is
refused by name. Nothing is passed over in silence.
"""
