"""``suture audit``: what would a hospital leak if it joined? Cuts and defences, attacked and drawn as a frontier."""
