"""Pictures: t-SNE, training curves, the report page."""
