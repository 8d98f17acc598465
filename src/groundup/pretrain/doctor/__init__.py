"""What is wrong with a run, found before it is paid for."""
