"""The commands: thin wiring from Hydra's configuration to the library."""
