package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// Networks gives machines with a network card their places in the host's network.
type Networks interface {
	// Offers are the policies that jobs can have here besides none, and "ipv6" where they can have that.
	Offers() []string
	// Take gives a place that nobody else has, and from which nothing can be reached yet.
	Take(ctx context.Context) (Network, error)
}

// Network is one machine's place in the host's network.
type Network interface {
	// Tap is the host's end of the machine's card, as vmm.Attach wants it.
	Tap() *os.File
	// Guest is what the guest sets the card up with.
	Guest() wire.Network
	// Allow lets the machine reach what a job may reach, and nothing else, all at once.
	Allow(ctx context.Context, n jobs.Network) error
	// Dial connects to a TCP port of the machine's card.
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	// Close gives the place up, with all that was allowed. It is idempotent.
	Close() error
}

// ErrNeverAllowed is wrapped by Network.Allow's error where the job asks for what no job may reach: another try would end the same.
var ErrNeverAllowed = errors.New("no job may reach it here")

// spare is a VMM that waits for its template's state, nil until it is started, and its machine's place in the network, nil for none.
type spare struct {
	vmm.Prepared
	net Network
}

// errNoPlace is why there is no machine with a network card: others have all places for them.
var errNoPlace = errors.New("no place in this host's network is free")

// place gives what a VMM of the pool's is started in: its machine's place in the network, which may have to be waited for. Who has them may
// keep them for hours, and another worker may have one: so it is not waited for longer than PlaceWithin.
func (p *pool) place(ctx context.Context) (_ *spare, err error) {
	s := &spare{}
	if !p.shape.NIC {
		return s, nil
	}
	if p.ps.cfg.Networks == nil {
		return nil, errors.New("this worker has no networks")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.ps.cfg.PlaceWithin, errNoPlace)
	defer cancel()
	s.net, err = p.ps.cfg.Networks.Take(ctx)
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errNoPlace):
		return nil, &failure{jobs.HostResources, fmt.Errorf("%w, for %v", errNoPlace, p.ps.cfg.PlaceWithin)}
	case err != nil:
		return nil, fmt.Errorf("take a place in the network: %w", err)
	}
	return s, nil
}

// start starts the VMM. On error nothing is left of it, nor of its place.
func (p *pool) start(s *spare) (err error) {
	var attach vmm.Attach
	if s.net != nil {
		attach.Tap = s.net.Tap()
	}
	if s.Prepared, err = p.ps.cfg.Driver.Prepare(p.ps.ctx, p.tmpl, attach); err != nil {
		return errors.Join(err, leave(s.net))
	}
	return nil
}

// Close ends the VMM, where there is one, then its network.
func (s *spare) Close() (err error) {
	if s.Prepared != nil {
		err = s.Prepared.Close()
	}
	return errors.Join(err, leave(s.net))
}

// guestNetwork is what a guest is told of its network.
func guestNetwork(n Network) *wire.Network {
	if n == nil {
		return nil
	}
	g := n.Guest()
	return &g
}

func leave(n Network) error {
	if n == nil {
		return nil
	}
	return n.Close()
}

// networks is what the worker offers of networks.
func (w *Worker) networks() (l []string) {
	if w.cfg.Networks != nil {
		l = w.cfg.Networks.Offers()
	}
	if w.cfg.Ports != nil {
		l = append(l, jobs.NetworkPorts)
	}
	return l
}

// connect lets the machine reach what the job may reach; false where no job may, and the result says so.
func (a *attempt) connect(ctx context.Context, m *machine) (bool, error) {
	if m.net == nil {
		return true, nil
	}
	err := m.net.Allow(ctx, a.spec.Network)
	if errors.Is(err, ErrNeverAllowed) {
		a.result.Ending, a.result.Reason = jobs.StartFailed, err.Error()
		return false, nil
	}
	if err != nil {
		return false, ended(ctx, jobs.HostResources, fmt.Errorf("open the network: %w", err))
	}
	return true, nil
}
