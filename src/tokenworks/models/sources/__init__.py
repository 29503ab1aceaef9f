"""Where models come from: the catalogue, packages, hubs, and the store on this machine."""
