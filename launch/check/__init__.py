"""``suture check``: what a site has, before it joins."""
