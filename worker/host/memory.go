package host

// MemoryWatch tells whether the host is short of memory.
type MemoryWatch struct {
	Reader Reader
	// LeastMiB is what must remain available.
	LeastMiB int
}

// stalledFor is the part of ten seconds in which all that could run waited for memory, from which on a host is short of it: it reclaims
// what it needs again at once.
const stalledFor = 0.05

// Short tells whether less than LeastMiB is available, or whether tasks stall for want of memory. What cannot be read is not short.
func (w MemoryWatch) Short() bool {
	if available, err := w.Reader.AvailableMiB(); err == nil && available < w.LeastMiB {
		return true
	}
	s, err := w.Reader.Pressure("memory")
	return err == nil && s.Full >= stalledFor
}
