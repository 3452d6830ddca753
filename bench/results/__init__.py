"""What is stored: records and the folder of a run."""
