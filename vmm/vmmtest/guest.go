package vmmtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// Guest is what the suite does with the guest in a machine. Each call dials anew and hangs up.
type Guest interface {
	// Echo sends b through the machine's channel and gives what comes back.
	Echo(ctx context.Context, m vmm.Machine, b []byte) ([]byte, error)
	// Set keeps a value in the guest's memory, Get reads it; empty before the first Set.
	Set(ctx context.Context, m vmm.Machine, value string) error
	Get(ctx context.Context, m vmm.Machine) (string, error)
	// PowerOff asks the guest to end the machine, and does not wait for that.
	PowerOff(ctx context.Context, m vmm.Machine) error
}

// TestGuest talks to a machine with Command testguest in it.
type TestGuest struct{}

var _ Guest = TestGuest{}

// Session is a connection that is in step with the guest: what was sent before it, on connections that broke off, is gone.
type Session struct {
	net.Conn
	r    *bufio.Reader
	stop func() bool
}

// Dial opens a session that ends with ctx.
func (TestGuest) Dial(ctx context.Context, m vmm.Machine) (*Session, error) {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return nil, err
	}
	s := &Session{Conn: conn, r: bufio.NewReader(conn)}
	s.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	nonce := rand.Text()
	if _, err := io.WriteString(conn, "\nsync "+nonce+"\n"); err != nil {
		s.Close()
		return nil, err
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("sync with the guest: %w", err)
		}
		if strings.HasSuffix(line, "sync "+nonce+"\n") {
			return s, nil
		}
	}
}

// Close hangs up.
func (s *Session) Close() error {
	s.stop()
	return s.Conn.Close()
}

// Ask sends a line and gives the line that answers it.
func (s *Session) Ask(line string) (string, error) {
	if _, err := io.WriteString(s.Conn, line+"\n"); err != nil {
		return "", err
	}
	answer, err := s.r.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// Ask is a session of one question.
func (g TestGuest) Ask(ctx context.Context, m vmm.Machine, line string) (string, error) {
	s, err := g.Dial(ctx, m)
	if err != nil {
		return "", err
	}
	defer s.Close()
	return s.Ask(line)
}

// Do asks and wants "ok".
func (g TestGuest) Do(ctx context.Context, m vmm.Machine, line string) error {
	answer, err := g.Ask(ctx, m, line)
	if err == nil && answer != "ok" {
		err = fmt.Errorf("guest answers %q with %q", line, answer)
	}
	return err
}

// Echo sends b while it reads.
func (g TestGuest) Echo(ctx context.Context, m vmm.Machine, b []byte) ([]byte, error) {
	s, err := g.Dial(ctx, m)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(s.Conn, io.MultiReader(strings.NewReader(fmt.Sprintf("echo %d\n", len(b))), bytes.NewReader(b)))
		sent <- err
	}()
	got := make([]byte, len(b))
	_, err = io.ReadFull(s.r, got)
	if err != nil {
		s.Close()
	}
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	return got, err
}

// Set keeps value in the guest.
func (g TestGuest) Set(ctx context.Context, m vmm.Machine, value string) error {
	return g.Do(ctx, m, "set "+value)
}

// Get gives what Set kept.
func (g TestGuest) Get(ctx context.Context, m vmm.Machine) (string, error) {
	return g.Ask(ctx, m, "get")
}

// PowerOff powers the machine off.
func (g TestGuest) PowerOff(ctx context.Context, m vmm.Machine) error {
	return g.order(ctx, m, "poweroff")
}

// Reboot and Panic end it in other ways.
func (g TestGuest) Reboot(ctx context.Context, m vmm.Machine) error { return g.order(ctx, m, "reboot") }
func (g TestGuest) Panic(ctx context.Context, m vmm.Machine) error  { return g.order(ctx, m, "panic") }

// order sends a line that is not answered.
func (g TestGuest) order(ctx context.Context, m vmm.Machine, line string) error {
	s, err := g.Dial(ctx, m)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := io.WriteString(s.Conn, line+"\n"); err != nil {
		return err
	}
	select { // hanging up at once could overtake the line
	case <-m.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the machine is not over: %w; console:\n%s", context.Cause(ctx), m.Console())
	}
}
