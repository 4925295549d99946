"""A site: how it joins a run and which of its images it uses."""
