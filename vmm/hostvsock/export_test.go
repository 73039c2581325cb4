package hostvsock

// Parse reads one answer of the kernel's.
func Parse(b []byte) (Listener, error) { return parse(b) }

// Judge is what is said of those that listen.
func Judge(all []Listener) error { return strangers(all) }
