"""The Hydra configuration of lightning-mvp's commands, shipped as `lightning_mvp.conf`."""
