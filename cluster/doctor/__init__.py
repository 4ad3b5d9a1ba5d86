"""What `cluster doctor` looks at: what is found, and what that means."""
