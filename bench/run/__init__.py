"""Planned cells become stored results: sessions, and the processes of cells."""
