"""The Flower side that all algorithms share: base strategy, records, clients by partition, reply checks."""
