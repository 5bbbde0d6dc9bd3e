"""Image-text alignment from few pairs, with a contrastive loss re-scheduled at every step."""
