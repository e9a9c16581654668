"""What is Flower-shaped and not an algorithm: base strategy, records, clients by partition, reply checks."""
