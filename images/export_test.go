package images

// Verified is of how many files it is remembered that they were right.
func (n *Snapshots) Verified() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.verified)
}
