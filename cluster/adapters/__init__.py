"""What lets programs written for other interfaces reach a cluster; each module imports its library only when used."""
