package hostnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Dial connects to a TCP port of the guest's, from its gateway, whatever the policy. The connection ends with the slot.
func (s *Slot) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(ErrClosed) })() //nolint:contextcheck // the slot's life, besides the caller's
	c, err := dial(ctx, s.ns, "tcp", netip.AddrPortFrom(guestAddr(), port))
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	g := &guestConn{TCPConn: c.(*net.TCPConn)}
	g.forget = context.AfterFunc(s.life, func() { _ = g.TCPConn.Close() }) //nolint:contextcheck // it outlives the call; it may have ended by itself
	return g, nil
}

// guestConn is a connection that ends with its slot.
type guestConn struct {
	*net.TCPConn
	forget func() bool
}

// Close closes it before its slot does.
func (c *guestConn) Close() error {
	c.forget()
	return c.TCPConn.Close()
}
