"""Evaluation: retrieval, statistics of the embeddings, robustness."""
