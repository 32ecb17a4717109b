"""From files to columns: JSON, JSONL, CSV (each also .gz) and Parquet, read in chunks, each record checked."""
