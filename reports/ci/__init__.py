"""What a gate found, for those who show it: `junit.py` for CI servers, `markdown.py` for the page of a job,
`annotations.py` for the lines of the matrix."""
