"""Data sets (TFDS builders), Grain pipelines of batches, and partitions into clients."""
