"""A site's policy: the last word on what a run may do with the site's images."""
