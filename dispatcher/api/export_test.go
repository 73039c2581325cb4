package api

import (
	"github.com/paddockvm/paddock/jobs"
)

// ParseID and EventID are what clients send back, and what they were sent.
func ParseID(id string) (jobs.Position, bool) { return parseID(id) }

func EventID(attempt int, seq int64) string { return eventID(attempt, seq) }

// The bounds that tests reach.
const (
	KeepAlive   = keepAlive
	WriteWithin = writeWithin
	BackWithin  = backWithin
	MaxWaiting  = maxWaiting
)

// Checking is how many passwords are checked at once.
func (s *Server) Checking() int { return cap(s.checking) }
