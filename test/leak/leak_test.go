package leak

import (
	"testing"
	"time"
)

// What ends late is no leak, and what does not end is one.
func TestFind(t *testing.T) {
	go time.Sleep(2 * time.Second) // goleak itself takes that for a leak
	if err := Find(); err != nil {
		t.Error(err)
	}
	stay := make(chan struct{})
	defer close(stay)
	go func() { <-stay }()
	if find(time.Second) == nil {
		t.Error("one that stays was not found")
	}
}
