package forward

import (
	"context"
	"net"
)

// Bound makes a proxy take that many connections, for tests that reach the bound.
func (p *Proxy) Bound(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = n
}

// Connections are how many there may be to one guest.
const Connections = connections

// Connect gives the connection that a request goes by.
func (p *Ports) Connect(ctx context.Context, port uint16) (net.Conn, error) {
	return p.connect(ctx, port)
}
