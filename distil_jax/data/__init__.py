"""Text and rows in: readers of files, and corpora of token shards."""
