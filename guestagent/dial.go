package guestagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// dial joins a stream with a TCP connection to the guest's loopback until both directions are at their end, or one of them breaks.
func (a *agent) dial(ctx context.Context, s *wire.Stream, d *wire.Dial) error {
	if d.Port < 1 || d.Port > 65535 {
		return &wire.Error{Kind: wire.ErrRequest, Message: fmt.Sprintf("dial port %d", d.Port)}
	}
	if !a.takeDial() {
		return &wire.Error{Kind: wire.ErrBusy, Message: fmt.Sprintf("%d connections are open already", wire.MaxDials)}
	}
	defer a.giveDial()
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { // the host may give the connection up before it is open
		select {
		case <-s.Gone():
			cancel()
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer cancel()
	conn, err := a.hands.dial(ctx, d.Port)
	if err != nil {
		return dialError(d.Port, err)
	}
	defer conn.Close() //nolint:errcheck // what counts has been read and written
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer unhook()
	return join(ctx, cancel, s, conn)
}

func (a *agent) takeDial() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dials >= wire.MaxDials {
		return false
	}
	a.dials++
	return true
}

func (a *agent) giveDial() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dials--
}

// join carries bytes both ways.
func join(ctx context.Context, cancel context.CancelFunc, s *wire.Stream, conn *net.TCPConn) error {
	if err := s.Send(ctx, wire.ChanMessage, []byte(wire.DialOpen)); err != nil {
		return err
	}
	var in sync.WaitGroup
	var inErr error
	in.Go(func() {
		if inErr = receive(ctx, s, conn); inErr != nil {
			cancel()
		}
	})
	err := transmit(ctx, s, conn)
	if err != nil {
		cancel()
	}
	in.Wait()
	if err == nil || errors.Is(err, net.ErrClosed) && inErr != nil {
		err = inErr
	}
	return err
}

// receive writes what the host sends into the connection, and its end.
func receive(ctx context.Context, s *wire.Stream, conn *net.TCPConn) error {
	for {
		_, b, _, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return conn.CloseWrite()
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
	}
}

// transmit sends what the connection gives, and its end.
func transmit(ctx context.Context, s *wire.Stream, conn *net.TCPConn) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := s.Send(ctx, wire.ChanData, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return s.Send(ctx, wire.ChanMessage, []byte(wire.DialEnd))
		}
		if err != nil {
			return err
		}
	}
}

// loopback connects to a port on this system's own loopback, of IPv4 or else IPv6.
func loopback(ctx context.Context, port int) (*net.TCPConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.ECONNREFUSED) {
		var err6 error
		if conn, err6 = d.DialContext(ctx, "tcp", net.JoinHostPort("::1", strconv.Itoa(port))); err6 != nil {
			return nil, err // the first one's: IPv6 may be off
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func dialError(port int, err error) error {
	kind := wire.ErrAgent
	if errors.Is(err, syscall.ECONNREFUSED) {
		kind = wire.ErrRefused
	}
	return &wire.Error{Kind: kind, Message: fmt.Sprintf("dial port %d: %v", port, err)}
}

// resize checks what it is asked for and does it.
func (a *agent) resize(ctx context.Context, r *wire.Resize) (*wire.Size, error) {
	if r.VCPUs < 0 || r.VCPUs > maxVCPUs || r.PluggedMiB < 0 || r.PluggedMiB > maxPluggedMiB {
		return nil, &wire.Error{Kind: wire.ErrRequest, Message: fmt.Sprintf("resize to %d processors and %d MiB more", r.VCPUs, r.PluggedMiB)}
	}
	return a.hands.resize(ctx, r)
}

// What no machine exceeds: Linux's CONFIG_NR_CPUS of distributions, and 4 TiB.
const (
	maxVCPUs      = 8192
	maxPluggedMiB = 4 << 20
)
