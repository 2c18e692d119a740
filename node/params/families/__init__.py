"""What the tensors of a model are and what they compute, one family of architectures a file."""
