package match

// Tenants is how many the queue knows something of.
func (q *Queue) Tenants() int { return len(q.tenants) }
