// Package inproc is a driver whose machines are goroutines: a function serves the guest's end of the byte stream. It behaves like a
// driver in everything but isolation, fails where it is told to, and costs next to nothing: for tests, and for measuring everything but
// the machine. It imports vmm and the standard library.
package inproc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"sync"

	"github.com/paddockvm/paddock/vmm"
)

// Driver is vmm.Driver in this process.
type Driver struct {
	serve func(ctx context.Context, conn net.Conn)
	// FailRestore, where set, is asked before each restore; its error is the restore's.
	FailRestore func() error
}

var _ vmm.Driver = (*Driver)(nil)

// New gives a driver; serve is a guest's life: it returns when ctx ends or conn breaks.
func New(serve func(ctx context.Context, conn net.Conn)) *Driver { return &Driver{serve: serve} }

// Name is "inproc".
func (*Driver) Name() string { return "inproc" }

// Probe always succeeds.
func (*Driver) Probe(context.Context) (vmm.Caps, error) {
	return vmm.Caps{Version: "1", Accel: "none", Machine: "inproc", CPU: "host", Degraded: []string{"isolation"}}, nil
}

// Boot gives vmm.ErrUnsupported: there is nothing to boot.
func (*Driver) Boot(context.Context, vmm.Boot, vmm.Attach) (vmm.Machine, error) {
	return nil, vmm.ErrUnsupported
}

// Prepare has nothing to do.
func (d *Driver) Prepare(ctx context.Context, _ vmm.Template, _ vmm.Attach) (vmm.Prepared, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return &prepared{d: d}, nil
}

type prepared struct {
	d    *Driver
	once sync.Once
}

var errUsed = errors.New("prepared machine used or closed")

func (p *prepared) Restore(ctx context.Context) (_ vmm.Machine, err error) {
	err = errUsed
	p.once.Do(func() { err = context.Cause(ctx) })
	if err == nil && p.d.FailRestore != nil {
		err = p.d.FailRestore()
	}
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	run, stop := context.WithCancel(context.Background())
	return &Machine{id: "m-" + hex.EncodeToString(id), serve: p.d.serve, run: run, stop: stop, done: make(chan struct{})}, nil
}

func (p *prepared) Close() error {
	p.once.Do(func() {})
	return nil
}

// Machine is a machine in this process.
type Machine struct {
	id    string
	serve func(ctx context.Context, conn net.Conn)
	run   context.Context //nolint:containedctx // the machine's life, which no call bounds
	stop  context.CancelFunc

	mu    sync.Mutex
	conn  net.Conn
	guest sync.WaitGroup
	over  bool
	exit  vmm.Exit
	done  chan struct{}
}

var _ vmm.Machine = (*Machine)(nil)

// ID implements vmm.Machine.
func (m *Machine) ID() string { return m.id }

// DialGuest implements vmm.Machine.
func (m *Machine) DialGuest(ctx context.Context) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, net.ErrClosed
	}
	if m.conn != nil {
		_ = m.conn.Close()
	}
	host, guest := net.Pipe()
	m.conn = host
	m.guest.Go(func() {
		m.serve(m.run, guest)
		_ = guest.Close()
	})
	return host, nil
}

// Pause gives vmm.ErrUnsupported: a goroutine cannot be paused.
func (*Machine) Pause(context.Context) error { return vmm.ErrUnsupported }

// Resume gives vmm.ErrUnsupported.
func (*Machine) Resume(context.Context) error { return vmm.ErrUnsupported }

// Snapshot gives vmm.ErrUnsupported.
func (*Machine) Snapshot(context.Context, string) (vmm.Template, error) {
	return vmm.Template{}, vmm.ErrUnsupported
}

// End ends the machine as if by itself: the guest's doing, or a failure.
func (m *Machine) End(exit vmm.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return
	}
	m.over, m.exit = true, exit
	m.stop()
	if m.conn != nil {
		_ = m.conn.Close()
	}
	close(m.done)
}

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit implements vmm.Machine.
func (m *Machine) Exit() vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Console implements vmm.Machine.
func (*Machine) Console() string { return "" }

// Close implements vmm.Machine.
func (m *Machine) Close() error {
	m.End(vmm.Exit{})
	m.guest.Wait()
	return nil
}
