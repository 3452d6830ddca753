"""Traces a job on the simulated device: whose memory came and went, when and where."""
