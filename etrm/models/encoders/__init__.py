"""Context sources: encoders of demonstrations, and TRM's learned embedding. One file a family."""
