"""``suture evaluate``: what a trained model is worth on images, as a page, a table and numbers."""
