"""From files of events or texts to a corpus of shards: `ttr preprocess`.

Each file is read once, in chunks, and its records are spilled to disk by a hash of their entity (reading.py, spill.py). Then each partition of
entities, a few dozen megabytes, is loaded, sorted, tokenized, segmented, split and written as shards (partition.py, segments.py). So memory does
not grow with the corpus, only with the longest entity, which is never divided; files and partitions are worked on in parallel (workers.py), and a run
that was killed finds its finished ones (make.py).
"""
