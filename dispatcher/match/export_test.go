package match

// Tenants is how many the queue knows something of.
func (q *Queue) Tenants() int { return len(q.tenants) }

// LookAt sets how many groups of a tenant a match looks at in vain.
func (q *Queue) LookAt(n int) { q.mostLooked = n }
