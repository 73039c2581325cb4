package inproc_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/paddockvm/paddock/test/bubble"
	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// guests are what the machines of a driver run: each answers lines, and keeps a value for as long as its machine lives.
type guests struct{ values sync.Map }

func (g *guests) serve(ctx context.Context, conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch verb {
		case "sync":
			_, err = io.WriteString(conn, line)
		case "echo":
			var n int64
			if _, err = fmt.Sscan(arg, &n); err == nil {
				_, err = io.CopyN(conn, r, n)
			}
		case "set":
			g.values.Store(ctx, arg)
			_, err = io.WriteString(conn, "ok\n")
		case "get":
			value, _ := g.values.LoadOrStore(ctx, "")
			_, err = fmt.Fprintln(conn, value)
		}
		if err != nil {
			return
		}
	}
}

// guest powers off by the driver's own means: a function cannot end the machine that it serves.
type guest struct{ vmmtest.TestGuest }

func (guest) PowerOff(_ context.Context, m vmm.Machine) error {
	m.(*inproc.Machine).End(vmm.Exit{Guest: true, Reason: "shutdown"})
	return nil
}

func TestConformance(t *testing.T) {
	vmmtest.Run(t, vmmtest.Fixture{
		Driver: inproc.New(new(guests).serve), Guest: guest{}, NoPause: true, Template: vmm.Template{Driver: "inproc"},
		Kill: func(m vmm.Machine) error {
			m.(*inproc.Machine).End(vmm.Exit{Err: errors.New("killed")})
			return nil
		},
	})
}

func machine(t *testing.T, d *inproc.Driver) *inproc.Machine {
	t.Helper()
	p, err := d.Prepare(t.Context(), vmm.Template{}, vmm.Attach{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Restore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(*inproc.Machine)
}

func TestCloseWaitsForTheGuest(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		m := machine(t, inproc.New(func(ctx context.Context, _ net.Conn) {
			<-ctx.Done() // it is told, and takes its time
			<-leave
		}))
		if _, err := m.DialGuest(t.Context()); err != nil {
			t.Fatal(err)
		}
		closed := false
		go func() {
			m.Close()
			closed = true
		}()
		synctest.Wait()
		if closed {
			t.Error("Close returned while the guest ran")
		}
		close(leave)
		synctest.Wait()
		if !closed {
			t.Error("Close waits for a guest that has ended")
		}
	})
}

func TestFailRestore(t *testing.T) {
	d, sick := inproc.New(new(guests).serve), errors.New("no memory left")
	fails := 1
	d.FailRestore = func() error {
		if fails--; fails >= 0 {
			return sick
		}
		return nil
	}
	p, err := d.Prepare(t.Context(), vmm.Template{}, vmm.Attach{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Restore(t.Context()); !errors.Is(err, sick) {
		t.Errorf("restore: %v", err)
	}
	if _, err := p.Restore(t.Context()); err == nil || errors.Is(err, sick) {
		t.Errorf("restore of what has failed: %v", err)
	}
	m := machine(t, d)
	if got, err := (vmmtest.TestGuest{}).Echo(t.Context(), m, []byte("well")); err != nil || !bytes.Equal(got, []byte("well")) {
		t.Errorf("echo: %q, %v", got, err)
	}
}

func TestTheFirstEndStays(t *testing.T) {
	m := machine(t, inproc.New(new(guests).serve))
	m.End(vmm.Exit{Guest: true, Reason: "panic"})
	m.End(vmm.Exit{Err: errors.New("late")})
	m.Close()
	<-m.Done()
	if got := m.Exit(); got != (vmm.Exit{Guest: true, Reason: "panic"}) {
		t.Errorf("exit: %+v", got)
	}
}
