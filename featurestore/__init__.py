"""Recordings in, store out: every clip's waveform and frozen embedding map, computed once."""
