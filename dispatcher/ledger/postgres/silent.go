package postgres

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// heard has connections end where nothing comes from the server for so long while something is waited for: one that was cut off, or
// whose host stands still, says nothing for ever, and the statement's own timeout is the server's.
func heard(dial pgconn.DialFunc, within time.Duration) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &listening{Conn: c, within: within}, nil
	}
}

// listening is such a connection. A deadline that is set from outside goes before its own.
type listening struct {
	net.Conn
	within time.Duration

	mu    sync.Mutex
	bound bool // from outside
}

// Read implements net.Conn.
func (l *listening) Read(b []byte) (int, error) {
	l.mu.Lock()
	if !l.bound {
		if err := l.Conn.SetReadDeadline(time.Now().Add(l.within)); err != nil {
			l.mu.Unlock()
			return 0, err
		}
	}
	l.mu.Unlock()
	return l.Conn.Read(b)
}

// SetDeadline implements net.Conn.
func (l *listening) SetDeadline(t time.Time) error { return l.set(t, l.Conn.SetDeadline) }

// SetReadDeadline implements net.Conn.
func (l *listening) SetReadDeadline(t time.Time) error { return l.set(t, l.Conn.SetReadDeadline) }

func (l *listening) set(t time.Time, set func(time.Time) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bound = !t.IsZero()
	return set(t)
}
