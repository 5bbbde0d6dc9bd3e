"""The trained model in use: embedding, search, evaluation, export and diagnosis."""
