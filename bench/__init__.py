"""Measures: from a matrix to cells, isolated jobs, ledgers and results; and the command line."""
