"""What is asked: a file, its layers, the combinations, the planned cells."""
