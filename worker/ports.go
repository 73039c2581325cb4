package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/worker/forward"
)

// openPorts makes the job's ports reachable on this host and tells viewers where, until the function that it gives is called.
func (a *attempt) openPorts(ctx context.Context, m *machine) (stop func(), err error) {
	if len(a.spec.Network.Ports) == 0 {
		return func() {}, nil
	}
	if a.w.cfg.Ports == nil {
		return nil, ended(ctx, jobs.HostResources, fmt.Errorf("this worker forwards no ports"))
	}
	ports := forward.New(a.w.cfg.Ports, m.dial)
	event := jobs.Event{Type: jobs.EventPorts}
	for _, guest := range a.spec.Network.Ports {
		at, err := ports.Open(uint16(guest)) //nolint:contextcheck // connections come later, until the ports are closed
		if err != nil {
			_ = ports.Close()
			return nil, ended(ctx, jobs.HostResources, err)
		}
		event.Ports = append(event.Ports, jobs.Port{Guest: guest, Host: at.String()})
	}
	withdraw := a.publish(ports, event.Ports)
	a.events.add(event)
	return func() {
		withdraw()
		_ = ports.Close()
	}, nil
}

// publish has the ports reached over HTTP, too, where this worker has a proxy, and says where.
func (a *attempt) publish(ports *forward.Ports, told []jobs.Port) (withdraw func()) {
	proxy := a.w.cfg.PortsHTTP
	if proxy == nil {
		return func() {}
	}
	for i := range told {
		told[i].URL = proxy.URL(a.lease.Job, uint16(told[i].Guest))
	}
	return proxy.Publish(a.lease.Job, ports)
}

// dial connects to a port of the machine: on the guest's loopback, through its agent, which is where programs listen, there or everywhere,
// with a network card or without; and where nothing listens there, on its card.
func (m *machine) dial(ctx context.Context, port uint16) (net.Conn, error) {
	c, err := m.agent.Dial(ctx, int(port))
	refused, ok := errors.AsType[*wire.Error](err)
	switch {
	case ok && refused.Kind == wire.ErrBusy:
		return nil, fmt.Errorf("%w: %w", forward.ErrBusy, err)
	case !ok || refused.Kind != wire.ErrRefused:
		return c, err
	case m.net == nil:
		return nil, fmt.Errorf("%w: %w", syscall.ECONNREFUSED, err)
	}
	return m.net.Dial(ctx, port)
}
