"""What people read: the HTML report and the terminal's tables. Reads result files; never trains."""
