"""The inference process: models and crosscoders on one device, behind a gRPC service."""
