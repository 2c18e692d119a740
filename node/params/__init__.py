"""Parameter sets on this machine: their files, encodings, architectures, and the blob store."""
