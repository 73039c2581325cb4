package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// channel is the way to the guest's agent: one connection at a time, whatever device it leads to.
type channel struct {
	way     way
	closing chan struct{}
	once    sync.Once

	// held guards what is below; a channel and not a mutex because it is held while connecting. What the way connects by must not be
	// given back meanwhile: it could already be another machine's.
	held   chan struct{}
	conn   net.Conn
	closed bool
}

// way is a device of the machine that leads to the guest's agent.
type way interface {
	// connect waits until the other end accepts.
	connect(ctx context.Context) (net.Conn, error)
	// close gives back what connect needs. It is called once.
	close()
}

func newChannel(w way) *channel {
	return &channel{way: w, closing: make(chan struct{}), held: make(chan struct{}, 1)}
}

// dial connects, and ends the connection before. It gives up when over is closed.
func (c *channel) dial(ctx context.Context, over <-chan struct{}) (net.Conn, error) {
	select {
	case c.held <- struct{}{}:
		defer func() { <-c.held }()
	case <-ctx.Done():
		return nil, fmt.Errorf("dial guest: %w", context.Cause(ctx))
	}
	if c.closed {
		return nil, fmt.Errorf("dial guest: %w", net.ErrClosed)
	}
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
	conn, err := c.connect(ctx, over)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	c.conn = conn
	return conn, nil
}

func (c *channel) connect(ctx context.Context, over <-chan struct{}) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-c.closing:
			cancel(net.ErrClosed)
		case <-over:
			cancel(errOver)
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer cancel(nil)
	return c.way.connect(ctx)
}

var errOver = errors.New("the machine is over")

// hangUp ends the connection there is.
func (c *channel) hangUp() {
	c.held <- struct{}{}
	defer func() { <-c.held }()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// close ends the connection and the channel. It is idempotent.
func (c *channel) close() {
	c.once.Do(func() { close(c.closing) })
	c.hangUp()
	c.held <- struct{}{}
	defer func() { <-c.held }()
	if !c.closed {
		c.closed = true
		c.way.close()
	}
}
