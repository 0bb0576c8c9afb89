"""What `make bench` runs: figures by the real program, each with its machine and spread."""
