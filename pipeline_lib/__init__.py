"""A real-time stock analytics pipeline: a market feed, Kafka, Spark Structured Streaming, PostgreSQL, a live dashboard.

Importing this package imports none of them: each stage is a module of its own, imported where it is used.
"""
