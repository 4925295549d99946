"""What each process of a run does: the server, a client, a site, the unsplit oracle."""
