"""One cell, measured in this process."""
