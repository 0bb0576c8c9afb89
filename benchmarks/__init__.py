"""What `make bench` measures, each on real components, with a topic and a database of its own."""
