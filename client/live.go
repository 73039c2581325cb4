package client

import (
	"sync"

	"github.com/nats-io/nats.go"
)

const (
	// maxLive and maxLiveBytes bound what waits for a viewer who is slow. What comes on top is not kept for it, but read again from the
	// stream: so neither the job nor another viewer waits, and a viewer takes no more memory than this.
	maxLive      = 256
	maxLiveBytes = 1 << 20
)

// live is what comes on a subject while somebody follows, the oldest first, as far as it fits.
type live struct {
	came chan struct{} // has one where something has come

	mu    sync.Mutex
	kept  [][]byte
	bytes int
	over  bool // something has not been kept
}

func newLive() *live { return &live{came: make(chan struct{}, 1)} }

// add keeps a message, or none of those that wait: a gap behind them would be read again anyway.
func (l *live) add(m *nats.Msg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
		return
	case len(l.kept) > 0 && (len(l.kept) == maxLive || l.bytes+len(m.Data) > maxLiveBytes):
		l.kept, l.bytes, l.over = nil, 0, true
	default:
		l.kept, l.bytes = append(l.kept, m.Data), l.bytes+len(m.Data)
	}
	select {
	case l.came <- struct{}{}:
	default:
	}
}

// next takes the oldest message; nil where none waits. whole is false where some have not been kept since the last reset.
func (l *live) next() (data []byte, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		l.kept = nil // of its array
		return nil, !l.over
	}
	data, l.kept[0] = l.kept[0], nil
	l.kept, l.bytes = l.kept[1:], l.bytes-len(data)
	return data, !l.over
}

// reset begins to keep again, where something has not been kept; what is read from the stream from now on has that.
func (l *live) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = false
}
