package dispatcher

// Accounts is of how many tenants it is known what they have submitted, Flags of how many workers what they were told.
func (d *Dispatcher) Accounts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.accounts)
}

// Flags is explained at Accounts.
func (d *Dispatcher) Flags() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flags)
}
