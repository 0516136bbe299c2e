"""The typed study: schema, strict loader, sweeps, and the registry of encoders by name."""
