"""Making shards of what users have: folders, tables, Hugging Face datasets, other shards."""
