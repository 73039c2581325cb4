package images

// Verified is of how many files it is remembered that they were right.
func (n *Snapshots) Verified() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.verified)
}

// Opened is of how many templates it is remembered that they were right.
func (h *Host) Opened() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.opened)
}

// Remembered is of how many blobs it is remembered that they were right, and how many manifests have been read.
func (s *Store) Remembered() (blobs, manifests int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.verified), len(s.read)
}
