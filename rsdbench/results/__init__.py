"""Records, metrics, points and claims: what is read once a run is done."""
